// llama.cpp, by npm's node-llama-cpp: JSON in on standard input, JSON out.
//   in:  {"packages": "folder of node_modules", "model": "file.gguf", "texts": [...], "prompts": [[ids]], "count": 50}
//   out: {"ids": of each text, "texts": those ids as text, "written": greedy ids after each prompt, "template": ...,
//         "eos": ..., "seconds": of writing, per prompt}
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const asked = JSON.parse(readFileSync(0, "utf8"));
const {getLlama} = await import(pathToFileURL(`${asked.packages}/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", maxThreads: asked.threads ?? 1, logLevel: "error"});
const model = await llama.loadModel({modelPath: asked.model});
const ids = asked.texts.map((text) => [...model.tokenize(text, false)]);
const texts = ids.map((each) => model.detokenize(each, true));
const written = [];
const seconds = [];
const context = await model.createContext({
    contextSize: model.trainContextSize, sequences: 1, threads: asked.threads ?? 1, flashAttention: false
});
const sequence = context.getSequence();
for (const prompt of asked.prompts) {
    await sequence.clearHistory();
    const out = [];
    let start = null;
    for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        out.push(id);
        start ??= process.hrtime.bigint(); // after the first: the prompt is read
        if (out.length === asked.count) break;
    }
    seconds.push(Number(process.hrtime.bigint() - start) / 1e9);
    written.push(out);
}
const template = model.fileInfo.metadata?.tokenizer?.chat_template ?? null;
const eos = model.tokens.eos;
process.stdout.write(JSON.stringify({ids, texts, written, seconds, template, eos}) + "\n", () => process.exit(0));

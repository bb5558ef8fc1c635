"use strict";
// Run a page's own code in node: read the page, and questions from standard input; write answers.
const { readFileSync } = require("node:fs");
const html = readFileSync(process.argv[2], "utf8");
const asked = JSON.parse(readFileSync(0, "utf8"));
const blocks = [...html.matchAll(/<script type="([^"]+)" (?:id|data-name)="([^"]+)"([^>]*)>([^]*?)<\/script>/g)];
const about = JSON.parse(blocks.find(([, , id]) => id === "about")[4]);
const tensors = Object.fromEntries(blocks.filter(([, type]) => type === "text/base64").map(([, , name, rest, base64]) => {
  const [, kind, rows, columns] = /data-kind="(\w+)" data-rows="(\d+)" data-columns="(\d+)"/.exec(rest);
  return [name, { kind, rows: Number(rows), columns: Number(columns), base64 }];
}));
const source = blocks.find(([, , id]) => id === "worker")[4];
const page = new Function(`${source}; return { unpackRun, write, Explainer, encodeChat, fitChat };`)();
const { model, tokenizer } = page.unpackRun(about, tensors);
const plain = page.unpackRun(about, tensors, true).model; // the readable form

function lastLogits(ids, by = model) {
  const reading = by.read(ids);
  let step = reading.next();
  while (!step.done) step = reading.next();
  return Array.from(step.value);
}

function greedy({ ids, count }) {
  const out = [];
  while (out.length < count) {
    const logits = lastLogits([...ids, ...out]);
    out.push(logits.indexOf(Math.max(...logits)));
  }
  return out;
}

function written(prompt, changes) {
  const ids = [], texts = [];
  const writing = page.write(model, tokenizer, prompt, { ...about.settings, ...changes }, about.rules);
  let step = writing.next();
  for (; !step.done; step = writing.next()) {
    if (step.value && step.value.id !== null) ids.push(step.value.id);
    if (step.value) texts.push(step.value.text);
  }
  return { ids, text: texts.join(""), reason: step.value };
}

function explained(ids, off) {
  const explainer = new page.Explainer(model, tokenizer);
  for (const _ of explainer.read(ids, off)) continue;
  const described = explainer.describe(about);
  return { ...described, attention: Array.from(described.attention) };
}

// Tokens per second after a short prompt, with WebAssembly and in the readable form
function speeds(count) {
  return [model, plain].map((by) => {
    by.forget();
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      if (by.ids.length === by.config.max_seq_len) by.forget();
      by.logits(by.step(i % by.config.vocab_size));
    }
    return (1000 * count) / (performance.now() - start);
  });
}

const answers = {
  speeds: asked.speed ? speeds(asked.speed) : null,
  logits: (asked.logits || []).map((ids) => lastLogits(ids)),
  plain: (asked.logits || []).map((ids) => lastLogits(ids, plain)),
  greedy: (asked.greedy || []).map(greedy),
  encoded: (asked.encode || []).map((text) => tokenizer.encode(text)),
  decoded: (asked.decode || []).map((ids) => tokenizer.decode(ids)),
  labels: (asked.labels || []).map((id) => tokenizer.label(id)),
  written: (asked.write || []).map(({ ids, ...changes }) => written(ids, changes)),
  explained: (asked.explain || []).map(({ ids, off }) => explained(ids, off || [])),
  chats: (asked.chats || []).map((messages) => page.fitChat(messages, about, tokenizer, about.settings.max_new_tokens).ids),
};
process.stdout.write(JSON.stringify(answers));

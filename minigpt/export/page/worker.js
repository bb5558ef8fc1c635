"use strict";
// Run the model in a worker, so that the page never freezes. One job at a time: a new one, or "stop", ends it.

// The numbers of a tensor from its base64; int8 rows have their fp32 scales before them
function unpackTensor({ kind, rows, columns, base64 }) {
  const binary = atob(base64), bytes = new Uint8Array(binary.length), scale = kind === "int8" ? 4 * rows : 0;
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const data = kind === "int8" ? new Int8Array(bytes.buffer, scale)
    : kind === "fp16" ? fromHalf(new Uint16Array(bytes.buffer)) : new Float32Array(bytes.buffer);
  return { data, scale: scale ? new Float32Array(bytes.buffer, 0, rows) : null, rows, columns, stride: columns };
}

// fp16 -> fp32, with a table of all 65,536 values
function fromHalf(halves) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
    table[bits] = sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
  }
  return Float32Array.from(halves, (bits) => table[bits]);
}

// The contents of the file, ready to run; `plain`: without WebAssembly
function unpackRun(about, tensors, plain = false) {
  const matrices = Object.values(tensors).filter(({ columns }) => columns > 1);
  const simd = plain ? null : makeSimd(matrices);
  const unpacked = Object.fromEntries(Object.entries(tensors).map(([name, packed]) => {
    const tensor = unpackTensor(packed);
    return [name, simd && tensor.columns > 1 ? simd.place(tensor) : tensor];
  }));
  return { about, model: new Model(about.shape, unpacked), tokenizer: new Tokenizer(about.tokenizer) };
}

// Let messages arrive. The ports need no reference: one for which a message waits is not garbage (HTML, 9.4.5)
function breathe() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(0);
  });
}

let run = null, current = 0;

// Run a generator in turns of 30 ms, until another job arrives. Not by Date.now: a person may set that clock back
async function drive(generator, job, each) {
  let turn = performance.now(), step = generator.next();
  for (; !step.done; step = generator.next()) {
    each(step.value);
    if (performance.now() - turn > 30) {
      await breathe();
      if (job !== current) return { stopped: true };
      turn = performance.now();
    }
  }
  return { value: step.value };
}

const JOBS = {
  load({ about, tensors }) {
    run = unpackRun(about, tensors);
    run.explainer = new Explainer(run.model, run.tokenizer);
    return {};
  },

  // Continue a text, or messages
  async write({ prompt, messages, settings }, job, tell) {
    const { model, tokenizer, about } = run;
    model.off.clear();
    run.explainer.forget();
    const said = messages?.map((message) => ({ ...message, content: cleanText(message.content, about.clean) }));
    const chat = said && fitChat(said, about, tokenizer, settings.max_new_tokens);
    const newest = said ? said.at(-1).content : cleanText(prompt, about.clean);
    const ids = chat ? chat.ids : tokenizer.encode(newest);
    if (!ids.length) throw new Error("There is no word to continue; write one.");
    const own = settings.stop.map((text) => cleanText(text, about.clean)).filter(Boolean);
    const stop = chat ? [...own, ...about.chat.stop] : own;
    const start = performance.now();
    let tokens = 0, first = 0, text = "";
    const rate = () => { // null before the clock has moved: some browsers round it to milliseconds
      const passed = performance.now() - first;
      return tokens > 1 && passed > 0 ? (1000 * (tokens - 1)) / passed : null;
    };
    const flush = () => {
      if (text) tell({ text, tokens, rate: rate() });
      text = "";
    };
    let sent = 0;
    const done = await drive(write(model, tokenizer, ids, { ...settings, stop }, about.rules), job, (step) => {
      if (!step) return;
      text += step.text;
      if (step.id !== null && ++tokens === 1) first = performance.now();
      if (performance.now() - sent > 30) {
        flush();
        sent = performance.now();
      }
    });
    flush();
    return { reason: done.stopped ? "interrupted" : done.value, tokens, seconds: (performance.now() - start) / 1000,
      rate: rate(), read: Math.min(ids.length, model.config.max_seq_len), given: ids.length,
      cut: Boolean(chat && chat.cut),
      unknown: tokenizer.unknown(newest), unit: tokenizer.unit };
  },

  async explain({ text, off }, job) {
    const { explainer, tokenizer } = run;
    const cleaned = cleanText(text, run.about.clean), limit = Math.min(run.model.config.max_seq_len, 256);
    const ids = tokenizer.encode(cleaned);
    const read = ids.slice(-limit);
    if (!read.length) return { data: null };
    const done = await drive(explainer.read(read, off), job, () => {});
    return done.stopped ? { stale: true }
      : { data: explainer.describe(run.about), given: ids.length, unknown: tokenizer.unknown(cleaned),
        unit: tokenizer.unit };
  },
};

if (typeof importScripts === "function") onmessage = async ({ data: { job, kind, ...rest } }) => {
  current = job;
  if (kind === "stop") return;
  try {
    const answer = await JOBS[kind](rest, job, (part) => postMessage({ job, part }));
    postMessage({ job, answer });
  } catch (error) {
    postMessage({ job, error: String(error.message || error) });
  }
};

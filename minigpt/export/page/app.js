// Run the page: send what the reader types to the worker, show what comes back. Texts only become text nodes.
const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("about").textContent);
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// --- the worker: one job at a time; a new job ends the one before it ---

const worker = new Worker(URL.createObjectURL(new Blob([byId("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let jobs = 0;

function ask(kind, body = {}, onPart = () => {}) {
  const job = ++jobs;
  worker.postMessage({ job, kind, ...body });
  return new Promise((done, failed) => waiting.set(job, { done, failed, onPart }));
}

function stopWriting() {
  worker.postMessage({ job: ++jobs, kind: "stop" });
}

worker.onmessage = ({ data: { job, part, answer, error } }) => {
  const asked = waiting.get(job);
  if (part) {
    asked.onPart(part);
    return;
  }
  waiting.delete(job);
  if (error) asked.failed(new Error(error));
  else asked.done(answer);
};
worker.onerror = (event) => alertReader(`The model cannot run here: ${event.message || "the browser allows no worker"}`);

function alertReader(text) {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
}

// --- settings ---

const DIALS = [
  ["temperature", "Temperature", "0 always takes the likeliest token; higher is more random", { min: 0, max: 2, step: 0.05 }],
  ["top_k", "Top-k", "only the k likeliest tokens; 0: all", { min: 0, step: 1, max: about.shape.vocab_size }],
  ["top_p", "Top-p", "only the likeliest tokens that together have this probability", { min: 0.01, max: 1, step: 0.01 }],
  ["max_new_tokens", "Tokens", "how many to write at most", { min: 1, step: 1, max: 100000 }],
  ["seed", "Seed", "the same seed, settings and beginning write the same text", {}],
  ["fresh", "Another seed each time", "", "switch"],
  ["stop", "Stop at", "texts that end the writing, one per line; \\n is the end of a line", "lines"],
];
const MORE = [
  ["min_p", "Min-p", "only tokens with at least this share of the likeliest one's probability; 0: all", { min: 0, max: 1, step: 0.01 }],
  ["typical_p", "Typical-p", "only tokens of near-average surprise; 1: all", { min: 0.01, max: 1, step: 0.01 }],
  ["repetition_penalty", "Repetition penalty", "above 1, tokens that occurred are less likely", { min: 0.05, max: 5, step: 0.05 }],
  ["frequency_penalty", "Frequency penalty", "subtracted from a token's logit each time that it was written", { min: -5, max: 5, step: 0.1 }],
  ["presence_penalty", "Presence penalty", "subtracted from the logit of a token that was written", { min: -5, max: 5, step: 0.1 }],
  ["no_repeat_ngram_size", "No repeats", "no sequence of this many tokens occurs twice; 0: off", { min: 0, step: 1, max: 1000 }],
  ["stop_at_eos", "Stop at the end of a text", "", "switch"],
];
for (const [name, , , kind] of [...DIALS, ...MORE]) if (kind.max !== undefined) { // the run's own values are allowed
  kind.min = Math.min(kind.min, about.settings[name]);
  kind.max = Math.max(kind.max, about.settings[name]);
}
const START = { ...about.settings, fresh: true };
const SLIDERS = new Set(["temperature", "top_p"]);

function dial([name, label, about_, kind]) {
  const hint = about_ && el("small", { id: `hint-${name}` }, about_);
  if (kind === "switch") return el("label", { class: "dial check" }, el("input", { type: "checkbox", id: name }), label);
  const described = { id: name, "aria-describedby": `hint-${name}` };
  if (kind === "lines") return el("div", { class: "dial" }, el("label", { for: name }, label),
    el("textarea", { ...described, rows: 2, spellcheck: "false" }), hint);
  const number = el("input", name === "seed" ? { ...described, inputmode: "numeric", pattern: "[0-9]*" }
    : { ...described, type: "number", ...kind });
  if (!SLIDERS.has(name)) return el("div", { class: "dial" }, el("label", { for: name }, label), number, hint);
  const slider = el("input", { type: "range", ...kind, "aria-label": label,
    oninput: () => { number.value = slider.value; } });
  number.addEventListener("input", () => { slider.value = number.value; });
  return el("div", { class: "dial" }, el("label", { for: name }, label), number, slider, hint);
}

function setDials(values) {
  for (const [name, , , kind] of [...DIALS, ...MORE]) {
    const input = byId(name);
    if (kind === "switch") input.checked = values[name];
    else if (kind === "lines") input.value = values[name].map((text) => text.replaceAll("\n", "\\n")).join("\n");
    else input.value = values[name];
    if (SLIDERS.has(name)) input.nextElementSibling.value = values[name];
  }
}

// Read the settings; an error names one that is not a number or out of range
function readDials() {
  const settings = { ...about.settings };
  for (const [name, label, , kind] of [...DIALS, ...MORE]) {
    const input = byId(name);
    if (kind === "switch") settings[name] = input.checked;
    else if (kind === "lines") settings[name] = input.value.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
    else if (name === "seed") {
      if (!/^\d{1,19}$/.test(input.value.trim())) throw new Error("Seed: give a whole number, 0 or more.");
      settings.seed = input.value.trim();
    } else {
      const value = Number(input.value);
      if (input.value === "" || !Number.isFinite(value) || value < kind.min || value > kind.max
        || (kind.step === 1 && !Number.isInteger(value))) {
        throw new Error(`${label}: give a ${kind.step === 1 ? "whole " : ""}number from ${kind.min} to ${kind.max.toLocaleString("en")}.`);
      }
      settings[name] = value;
    }
  }
  return settings;
}

const ENDS = { eos: "it ended the text", stop: "a stop text came", length: "all tokens were written",
  time: "the time was over", interrupted: "stopped" };

function statusText({ tokens, rate, reason, given, read, unknown, unit, cut }) {
  const parts = [count(tokens, "token")];
  if (rate) parts.push(`${Math.round(rate).toLocaleString("en")} tokens/s`);
  if (reason) parts.push(ENDS[reason]);
  if (given > read) parts.push(`only the last ${count(read, "token")} of the beginning fit into the model's context`);
  if (cut) parts.push("the oldest messages no longer fit");
  if (unknown && unknown.length) parts.push(strange(unknown, unit));
  return parts.join(" · ");
}

const strange = (unknown, unit) => `${count(unknown.length, unit)} that the model never saw: ${unknown.slice(0, 20).map(visible).join(" ")}`;

// Write with the settings, and raise the seed by one. `button` becomes the one that stops.
let writing = null;
async function produce(button, body, show, status) {
  const label = button.textContent;
  try {
    alertReader("");
    const settings = readDials();
    writing = button;
    button.textContent = "Stop";
    const answer = await ask("write", { ...body, settings }, (part) => {
      show(part.text);
      status.textContent = statusText(part);
    });
    status.textContent = statusText(answer);
    if (byId("fresh").checked) byId("seed").value = String(BigInt(settings.seed) + 1n);
    return answer;
  } catch (error) {
    alertReader(error.message);
    return null;
  } finally {
    button.textContent = label;
    writing = null;
  }
}

// --- write ---

async function writeFrom(prompt, given) {
  byId("given").textContent = given;
  byId("written").textContent = "";
  byId("paper").hidden = byId("caret").hidden = false;
  for (const id of ["more", "to-explain", "copy"]) byId(id).hidden = true;
  await produce(byId("write"), { prompt }, (text) => byId("written").append(text), byId("write-status"));
  byId("caret").hidden = true;
  const any = whole() !== "";
  for (const id of ["more", "to-explain", "copy"]) byId(id).hidden = !any;
}

const whole = () => byId("given").textContent + byId("written").textContent;
const start = () => {
  const prompt = byId("prompt").value;
  return writeFrom(prompt || about.prompt, prompt);
};
byId("write").addEventListener("click", () => (writing ? stopWriting() : start()));
byId("more").addEventListener("click", () => writing || writeFrom(whole(), whole()));
byId("copy").addEventListener("click", () => {
  getSelection().selectAllChildren(byId("paper"));
  document.execCommand("copy"); // a page opened as a file may have no other way
  getSelection().removeAllRanges();
  byId("copy").textContent = "Copied";
  setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
});
byId("to-explain").addEventListener("click", () => {
  byId("text").value = whole();
  openTab("explain");
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) start();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing) stopWriting();
});

// --- chat ---

let messages = [];

function bubble({ role, content }) {
  const text = el("p", {}, content);
  byId("messages").append(el("li", { class: role }, el("span", { class: "who" }, role === "user" ? "You" : about.name), text));
  return text;
}

async function answer() {
  const own = messages; // "New chat" may be pressed before the answer ends
  const system = byId("system").value;
  const asked = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  const text = bubble({ role: "assistant", content: "" });
  text.classList.add("busy");
  let content = "";
  const show = (piece) => {
    content += content ? piece : leftStripped(piece, about.chat.begin);
    text.textContent = content;
    text.scrollIntoView({ block: "nearest" });
  };
  const done = await produce(byId("send"), { messages: asked }, show, byId("chat-status"));
  text.classList.remove("busy");
  if (done) own.push({ role: "assistant", content });
  else text.parentElement.remove();
  if (own !== messages) byId("chat-status").textContent = "";
  byId("again").hidden = byId("clear").hidden = !messages.length;
}

function leftStripped(text, chars) {
  let at = 0;
  while (at < text.length && chars.includes(text[at])) at++;
  return text.slice(at);
}

function say() {
  const content = byId("say").value;
  if (!content.trim() || writing) return;
  messages.push({ role: "user", content });
  bubble(messages.at(-1));
  byId("say").value = "";
  answer();
}

byId("send").addEventListener("click", () => (writing ? stopWriting() : say()));
byId("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
  event.preventDefault();
  say();
});
byId("again").addEventListener("click", () => {
  if (writing) return;
  if (messages.at(-1).role === "assistant") { // else the last answer failed
    messages.pop();
    byId("messages").lastElementChild.remove();
  }
  answer();
});
byId("clear").addEventListener("click", () => {
  if (writing) stopWriting();
  messages = [];
  byId("messages").replaceChildren();
  byId("chat-status").textContent = "";
  byId("again").hidden = byId("clear").hidden = true;
});

// --- explain ---

const off = new Set(); // switched-off heads, as layer * H + head
let drawn = null, shown = null, typing = 0, allOn = null;

const mean = (loss) => loss.slice(1).reduce((sum, value) => sum + value, 0) / Math.max(1, loss.length - 1);

async function explain(keep) {
  if (byId("panel-explain").hidden) return; // the reader has moved on: a new job would end what is written there
  const text = byId("text").value;
  byId("explain-status").classList.add("busy");
  try {
    const { stale, data, given, unknown, unit } = await ask("explain", { text, off: [...off] });
    if (stale || byId("panel-explain").hidden) return; // what is hidden has no width to draw in
    alertReader("");
    byId("pictures").hidden = byId("steer").hidden = !data;
    if (!data) {
      byId("explain-status").textContent = "Type something.";
      byId("explain-status").classList.remove("busy");
      return;
    }
    if (!off.size) allOn = { text, loss: mean(data.loss) };
    byId("explain-status").replaceChildren(...summary(data, text, given, unknown, unit));
    const state = keep && drawn ? drawn.state : { token: data.texts.length - 1, ...(shown ? pick(shown) : best()) };
    drawn = drawExplanation(data, state, { off, toggle });
    shown = drawn.state;
    byId("explain-status").classList.remove("busy");
  } catch (error) {
    byId("explain-status").classList.remove("busy");
    alertReader(error.message);
  }
}

const pick = ({ layer, head, pinned }) => ({ layer, head, pinned });

// The head with the highest score
function best() {
  let most = -1, found = { layer: 0, head: 0 };
  for (const scores of Object.values(about.heads.scores)) scores.forEach((row, layer) => row.forEach((score, head) => {
    if (score > most) [most, found] = [score, { layer, head }];
  }));
  return found;
}

function summary(data, text, given, unknown, unit) {
  const known = data.loss.length > 1, fact = (value) => el("b", {}, value), out = [fact(count(data.ids.length, "token"))];
  if (given > data.ids.length) out.push(` (the last of ${count(given, "token")})`);
  if (known) out.push(", mean surprise ", fact(`${mean(data.loss).toFixed(3)} nats`), ", as if the model chose among ",
    fact(Math.exp(mean(data.loss)).toFixed(1)), " equally likely tokens");
  if (off.size) {
    out.push("; ", fact(`${count(off.size, "head")} off`));
    if (known && allOn && allOn.text === text) out.push(` (with all on: ${allOn.loss.toFixed(3)} nats)`);
    const switchOn = () => { off.clear(); byId("explain-status").focus(); explain(true); }; // the button disappears
    out.push(" ", el("button", { type: "button", class: "link", onclick: switchOn }, "switch all on"));
  }
  if (unknown.length) out.push(". ", strange(unknown, unit));
  return out;
}

function toggle(layer, head) {
  const at = layer * about.shape.num_heads + head;
  if (!off.delete(at)) off.add(at);
  explain(true);
}

byId("text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => explain(false), 120);
});

// A text to begin with: the written one, or one that the model writes without a prompt
async function firstText() {
  const field = byId("text");
  if (byId("written").textContent) {
    field.value = whole();
    return;
  }
  const settings = { ...about.settings, max_new_tokens: 48, stop: [] };
  let piece = "";
  await ask("write", { prompt: about.prompt, settings }, (part) => { piece += part.text; });
  // Unless the reader has typed, or is about to
  if (!field.value && document.activeElement !== field) field.value = (about.prompt + piece).trimStart();
}

// --- tabs ---

const TABS = ["write", ...(about.chat ? ["chat"] : []), "explain"];

async function openTab(name) {
  if (writing) stopWriting();
  for (const tab of TABS) {
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    byId(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
    byId(`panel-${tab}`).hidden = tab !== name;
  }
  byId("desk").hidden = name === "explain";
  byId("steer").hidden = name !== "explain" || !drawn;
  history.replaceState(null, "", `#${name}`);
  scrollTo(0, 0);
  if (name !== "explain") return;
  if (!byId("text").value) await firstText().catch((error) => alertReader(error.message));
  await explain(false);
}

function begin() {
  const { model, shape } = about, fact = (value) => el("b", {}, value.toLocaleString("en"));
  byId("brand").textContent = byId("title").textContent = about.name;
  byId("facts").append("A language model of ", fact(model.parameters), " parameters (", fact(model.layers), " layers with ",
    fact(model.heads), " heads, width ", fact(model.width), ", a context of ", fact(shape.max_seq_len), " tokens, weights in ",
    fact(about.precision), "). It runs in this page, on your own computer.");
  constants(about);
  byId("dials").append(...DIALS.map(dial));
  byId("more-dials").append(...MORE.map(dial));
  setDials(START);
  byId("reset").addEventListener("click", () => setDials(START));
  byId("prompt").value = about.prompt.trim() ? about.prompt : "";
  byId("tab-chat").hidden = !about.chat;
  const tabs = TABS.map((name) => byId(`tab-${name}`));
  TABS.forEach((name, at) => tabs[at].addEventListener("click", () => openTab(name)));
  roving(document.querySelector(".tabs"), tabs, tabs.length);
  steer(() => drawn);
  const asked = location.hash.slice(1);
  const name = TABS.includes(asked) ? asked : TABS[0];
  openTab(name === "explain" ? "write" : name);
  load(name);
}

async function load(name) {
  const tensors = {};
  for (const script of document.querySelectorAll('script[type="text/base64"]')) {
    const { name: tensor, kind, rows, columns } = script.dataset;
    tensors[tensor] = { kind, rows: Number(rows), columns: Number(columns), base64: script.textContent };
    script.remove();
  }
  try {
    await ask("load", { about, tensors });
    byId("write").disabled = byId("send").disabled = false;
    document.documentElement.dataset.ready = "yes";
    if (name === "explain") openTab(name);
  } catch (error) {
    alertReader(`The model in this file cannot be read: ${error.message}`);
  }
}

begin();

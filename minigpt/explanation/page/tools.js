"use strict";
// Helpers for the pictures: HTML elements, texts of tokens, numbers, colours, keys.

const percent = (p) => (p > 0 && p < 0.0005 ? "<0.1 %"
  : `${(100 * p).toFixed(p < 0.0995 || (p > 0.99 && p < 0.9995) ? 1 : 0)} %`);
const nats = (value) => (value < 0.005 ? "0.00" : value.toFixed(2));

function node(space, tag, attributes, children) {
  const made = space ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) made.style.setProperty(key, to);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
const el = (tag, attributes, ...children) => node(false, tag, attributes, children);
const svg = (tag, attributes, ...children) => node(true, tag, attributes, children);

// A drawing measured in CSS pixels, so that its letters have the same size on every screen
const picture = (width, height, about, ...children) => svg("svg",
  { width, height, role: "img", "aria-label": about }, ...children);

// The text of one token with visible spaces (␣) and line ends (↵)
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
// A part of a text, counted in whole characters: an emoji is not cut in two
const letters = (text, from, to) => [...text].slice(from, to).join("");
const token = (text, extra = "") => el("span", { class: `token ${extra}` }, visible(text) || "∅");

function colour(name) {
  const probe = el("span", { style: { color: `var(${name})` } });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found.match(/[\d.]+/g).slice(0, 3).map(Number);
}

// Whether an input method (for Chinese, Japanese, Korean) takes this key itself; in Safari only the code says so
const composes = (event) => event.isComposing || event.keyCode === 229;

// Let arrow keys move the focus between items; only one of them is in the tab order
function roving(group, items, columns) {
  group.onkeydown = (event) => {
    const at = items.indexOf(document.activeElement);
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at,
      End: items.length - 1 - at };
    if (at < 0 || !(event.key in by)) return;
    event.preventDefault();
    items[Math.min(items.length - 1, Math.max(0, at + by[event.key]))].focus();
  };
}

// Fade the edges of a box where it can scroll further, and let the Tab key reach it if it can scroll at all
function edges(box) {
  const rest = box.scrollWidth - box.clientWidth;
  box.classList.toggle("left", box.scrollLeft > 2);
  box.classList.toggle("right", box.scrollLeft < rest - 2);
  box.tabIndex = rest > 2 ? 0 : -1;
}

function reveal(box, x) {
  if (x < box.scrollLeft + 120 || x > box.scrollLeft + box.clientWidth - 60) box.scrollLeft = x - box.clientWidth / 2;
  edges(box);
}

function unpack(packed, T, H) {
  // packed: bytes 0 to 255, or their base64; for each layer, head and row t the t + 1 weights
  const bytes = typeof packed === "string" ? Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)) : packed;
  const size = (T * (T + 1)) / 2;
  return (layer, head, t, s) => (s > t ? 0 : bytes[(layer * H + head) * size + (t * (t + 1)) / 2 + s] / 255);
}

function paint(canvas, T, weight, [red, green, blue] = colour("--attention")) {
  canvas.width = canvas.height = T;
  canvas.classList.toggle("sharp", T <= 96);
  const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(T, T);
  for (let t = 0; t < T; t++) {
    for (let s = 0; s <= t; s++) {
      const at = 4 * (t * T + s);
      image.data[at] = red;
      image.data[at + 1] = green;
      image.data[at + 2] = blue;
      image.data[at + 3] = 255 * Math.sqrt(weight(t, s)); // the square root makes weak weights visible
    }
  }
  context.putImageData(image, 0, 0);
}

const KINDS = {
  previous_token: ["previous token", "Looks at the token before: how a letter or word learns what it follows."],
  first_token: ["first token", "Looks at the first token, as heads do that have nothing to do here."],
  duplicate_token: ["duplicate token", "Looks at earlier copies of the same token."],
  induction: ["induction", "Finds an earlier copy and looks at what came after it, to predict it again: A B … A → B."],
};

// Write the head of the page, once. `known`: the losses without the first, which is null.
function headline(data, known) {
  const { model } = data, T = data.texts.length, find = (id) => document.getElementById(id);
  const mean = known.reduce((sum, value) => sum + value, 0) / Math.max(1, known.length);
  find("title").textContent = `How ${data.run || "this model"} reads a text`;
  const fact = (value) => el("b", {}, value.toLocaleString("en"));
  find("facts").append(
    "A model of ", fact(model.layers), " layers with ", fact(model.heads), " heads each, width ", fact(model.width), ", ",
    fact(model.parameters), " parameters", ...(data.step ? [", after step ", fact(data.step)] : []), ", reads ",
    fact(T), ` token${T === 1 ? "" : "s"}`, ...(known.length ? [": loss ", fact(mean.toFixed(3)),
      " nats per token, as if it chose among ", fact(Math.exp(mean).toFixed(1)), " equally likely ones"] : []), ".",
  );
  constants(data);
}

// Fill in the model's numbers in the texts of the sections
function constants({ model, heads }) {
  const find = (id) => document.getElementById(id);
  find("named-from").textContent = heads.named_from;
  find("head-size").textContent = `${model.head_size} numbers`
    + (model.kv_heads < model.heads ? `; ${model.heads} heads share ${model.kv_heads} keys and values` : "");
  find("width").textContent = model.width;
  find("tied").hidden = !model.tie_embeddings || model.softmaxes > 1;
  find("mixture").hidden = model.softmaxes === 1;
}

// Show numbers, times and small elements as a person reads them. `el` and `svg` come from explain's tools.js.
/* global el */
export const count = (value) => Math.round(value).toLocaleString("en");

export const counted = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

// [label, value] as a line of large figures
export const figures = (rows) => el("dl", { class: "figures inspected" },
  ...rows.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));

export function short(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, sign] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= 0.99995 * size) return `${(value / size).toFixed(value < 10 * size ? 2 : 1)}${sign}`;
  }
  return String(value);
}

export const figure = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

// For axes and rates: 0.00031 -> 3.1e-4
export function plain(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.01) return value.toExponential(1).replace(".0e", "e");
  if (size >= 1e4) return short(value);
  return String(Number(value.toPrecision(4)));
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (whole < 60) return `${whole} s`;
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const megabytes = (bytes) =>
  (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function when(iso) {
  const date = new Date(iso), now = new Date();
  if (now.toDateString() === date.toDateString()) return date.toLocaleTimeString("en-GB", { timeStyle: "short" });
  const year = now.getFullYear() === date.getFullYear() ? {} : { year: "numeric" };
  return date.toLocaleDateString("en-GB", { day: "numeric", month: "short", ...year });
}

// A message for an empty place: what is missing, and what to do
export function empty(title, ...what) {
  return el("div", { class: "empty" }, el("p", { class: "empty-title" }, title), el("p", {}, ...what));
}

// A link to a part of the page for one run
export const link = (part, run, text) => el("a", { href: `#${part}/${encodeURIComponent(run)}` }, text);

export const code = (text) => el("code", {}, text);

export function button(text, act, { kind = "", ...more } = {}) {
  return el("button", { type: "button", class: kind, onclick: act, ...more }, text);
}

const newest = new WeakMap(); // box -> its newest task; an earlier one that ends later does not clear the box

// Show in the box what a slow task is doing until it ends, and then its error, if there is one
export async function during(box, words, work) {
  const task = {};
  newest.set(box, task);
  const clear = () => {
    if (newest.get(box) !== task) return;
    box.textContent = "";
    box.className = "status";
  };
  box.hidden = false;
  box.className = "status busy";
  box.setAttribute("role", "status");
  box.textContent = words;
  try {
    const found = await work((more) => { box.textContent = more; });
    clear();
    return found;
  } catch (error) {
    if (error.name === "AbortError") return clear();
    box.className = "status wrong";
    box.textContent = sentence(error.message);
    return undefined;
  }
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function copier(text, label = "Copy") {
  const made = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      made.textContent = "Copied";
    } catch {
      made.textContent = "Select the line and copy it";
    }
    setTimeout(() => { made.textContent = label; }, 1600);
  }, { kind: "small" });
  return made;
}

let fields = 0;
// A label with its field below
export function labelled(text, field, hint = "") {
  field.id ||= `field-${(fields += 1)}`;
  return el("label", { class: "field", for: field.id, title: hint }, el("span", {}, text), field);
}

export function choice(options, value, act) {
  const made = el("select", { onchange: () => act(made.value) },
    ...options.map(([id, text]) => el("option", { value: id }, text)));
  made.value = value;
  return made;
}

// A choice of a few values, as buttons next to each other
export function segments(name, options, value, act) {
  const box = el("div", { class: "segments", role: "group", "aria-label": name });
  const paint = (chosen) => {
    for (const each of box.children) each.setAttribute("aria-pressed", String(each.dataset.value === chosen));
  };
  box.append(...options.map(([id, text]) => el("button",
    { type: "button", "data-value": id, onclick: () => { paint(id); act(id); } }, text)));
  paint(value);
  return box;
}

export function askFirst(title, text, yes) {
  return new Promise((done) => {
    const box = el("dialog", { class: "ask", "aria-label": title });
    const close = (answer) => { box.close(); box.remove(); done(answer); };
    box.addEventListener("cancel", (event) => { event.preventDefault(); close(false); });
    box.append(el("h2", {}, title), el("p", {}, text), el("div", { class: "row end" },
      button("Cancel", () => close(false)), button(yes, () => close(true), { kind: "danger" })));
    document.body.append(box);
    box.showModal();
  });
}

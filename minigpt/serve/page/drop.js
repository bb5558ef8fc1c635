// Let a person drop or choose a text file; it is sent in slices, and then appears in the list of texts.
/* global el */
import { ask } from "./api.js";
import { button, during } from "./words.js";

const SLICE = 1 << 19; // characters sent at a time

// sent: called with the name under which the text is found
export function dropPlace(status, sent) {
  const take = async (file) => {
    if (!file) return;
    const name = await during(status, `Sending ${file.name} …`, (tell) => send(file, tell));
    if (name) await sent(name);
  };
  const input = el("input", { type: "file", accept: ".txt,.md,text/*", hidden: true });
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // so that the same file can be chosen again after it was changed
    take(file);
  });
  const box = el("div", { class: "drop" }, el("p", {}, "Drop a text file here, or ",
    button("choose one", () => input.click(), { kind: "link" }), "."), input);
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  return box;
}

function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("this file is not UTF-8; save it as UTF-8, or train in a terminal with --data.encoding");
  }
}

async function send(file, tell) {
  const text = decoded(await file.arrayBuffer());
  const key = Math.random().toString(36).slice(2); // the slices of two texts with one name must not mix
  for (let at = 0; ;) {
    let end = Math.min(text.length, at + SLICE);
    const half = end < text.length && /[\ud800-\udbff]/.test(text[end - 1]);
    if (half) end -= 1; // do not cut a character in two
    const found = await ask("/api/texts",
      { name: file.name, key, text: text.slice(at, end), first: at === 0, done: end === text.length });
    tell(`Sending ${file.name}: ${Math.round((100 * end) / Math.max(1, text.length))} %`);
    if (end === text.length) return found.text;
    at = end;
  }
}

// The list of texts as a field; a text that was just sent is added to it
export function addText(select, name) {
  if (![...select.options].some((each) => each.value === name)) select.append(el("option", { value: name }, name));
  select.value = name;
}

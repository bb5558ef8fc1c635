// Show a text: its figures, repeated lines, leaks between its parts, and its tokens in a tokenizer.
/* global el, visible, token */
import { ask } from "./api.js";
import { addText, dropPlace } from "./drop.js";
import { notebookText } from "./notebook.js";
import { choice, count, counted, during, empty, figure, figures, labelled } from "./words.js";

export const title = "Data";
const SMALL = 50000; // a model memorises a text of fewer bytes
const LEAK = 0.05; // if this share of validation is in training too, a score says little
const SPECIAL = "A special token: it stands for no text, or for a character that is not known.";
const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

export async function show(panel, app) {
  const view = new Data(panel, app);
  await view.build();
  return () => { clearTimeout(view.timer); view.stop?.abort(); };
}

// The figures of a text that matter before training on it, with advice
export function inspected(found) {
  const sum = (key) => Object.values(found.splits).reduce((total, each) => total + each[key], 0);
  const { duplicates, overlap, characters, tokens } = found;
  return [figures([["characters", count(sum("chars"))], ["words", count(sum("words"))], ["lines", count(sum("lines"))],
    ["different characters", count(characters.distinct)],
    ...(tokens ? [["bytes per token", figure(tokens.bytes_per_token, 2)]] : []),
    ["repeated lines", share(duplicates.share)], ["validation text also in training", share(overlap.share)]]),
  ...(sum("bytes") < SMALL ? [el("p", { class: "caution" },
    "The text is small: a model memorises it and learns little about writing. 1 MB is a good size.")] : []),
  ...(overlap.share > LEAK ? [el("p", { class: "caution" },
    `${share(overlap.share)} of the sequences of ${overlap.unit} in the validation text are in the training text too. `,
    "The validation loss is then lower than on a new text.")] : [])];
}

class Data {
  constructor(panel, app) {
    Object.assign(this, { panel, app, run: app.run });
  }

  async build() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const found = await during(this.status, "Reading the list of texts …", () => ask("/api/texts"));
    if (!found) return;
    this.source = choice([["", `the text of ${this.run}`], ...found.texts.map((name) => [name, name])], "",
      () => this.look());
    this.report = el("div", { class: "report" });
    this.area = el("textarea", { rows: 3, spellcheck: false, placeholder: "Write or paste a text" });
    this.area.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.spell(), 200);
    });
    this.boxes = el("div", { class: "spelled" });
    this.spelling = el("p", { class: "status", role: "status" });
    this.panel.replaceChildren(
      el("h2", {}, "A text through the tokenizer"),
      labelled(`Text, for the tokenizer of ${this.run}`, this.area), this.spelling, this.boxes,
      el("h2", {}, "A text to train on"), el("div", { class: "row" }, labelled("Look at", this.source)),
      dropPlace(this.status, (name) => { addText(this.source, name); return this.look(); }), this.status, this.report);
    this.area.value = notebookText();
    await Promise.all([this.spell(), this.look()]);
  }

  async look() {
    this.stop?.abort();
    this.stop = new AbortController();
    this.report.replaceChildren();
    const asked = { name: this.run, text: this.source.value };
    const found = await during(this.status, "Looking at the text …",
      () => ask("/api/inspect", asked, this.stop.signal));
    if (!found) return;
    const { splits, duplicates, overlap, tokens, characters, skipped, examples } = found;
    const part = (figures_) => (figures_.sampled ? " (of the first part)" : "");
    this.report.replaceChildren(...inspected(found), table(splits),
      ...(skipped.length ? [el("p", { class: "note" },
        `${counted(skipped.length, "file")} without text: ${skipped.slice(0, 5).join(", ")}`)] : []),
      el("div", { class: "columns" },
        bars(`Tokens${part(tokens)}`,
          `${count(tokens.used)} of ${counted(tokens.vocab_size, `${tokens.kind} token`)} occur.`,
          tokens.top.map(([text, id, times]) => [token(text), times, `token ${id}`])),
        bars("Characters", `${count(characters.distinct)} different, ${count(characters.non_ascii)} beyond ASCII.`,
          characters.top.map(([text, times]) => [token(text), times, `U+${text.codePointAt(0).toString(16)}`]))),
      el("h3", {}, `Repeated lines${part(duplicates)}`), el("p", { class: "note" }, duplicates.repeated
        ? `${count(duplicates.repeated)} of ${counted(duplicates.lines, "line")} appeared before.`
        : "No line is repeated."),
      el("ol", { class: "repeats" }, ...duplicates.top.slice(0, 8).map(([text, times]) => el("li", {},
        el("b", {}, `${count(times)} ×`), ` ${text}`))),
      el("h3", {}, `Leaks${part(overlap)}`), el("p", { class: "note" }, overlap.share === null
        ? `The validation text has no ${overlap.unit} in a row to look for.`
        : `${count(overlap.seen)} of ${count(overlap.grams)} sequences of ${overlap.unit} in the validation text `
          + "are in the training text too."),
      el("h3", {}, "Examples"), ...examples.filter(Boolean).map((text) => el("blockquote", { class: "sample" }, text)));
  }

  async spell() {
    const text = this.area.value;
    if (!text) {
      this.boxes.replaceChildren(empty("Write something above",
        "Each token becomes a box with its number and its bytes."));
      return;
    }
    const found = await during(this.spelling, "", () => ask("/api/tokens", { name: this.run, text }));
    if (!found || text !== this.area.value) return;
    const { tokens, count: all, bytes, kind, vocabulary } = found, left = all - tokens.length;
    this.boxes.replaceChildren(
      el("p", { class: "note" }, `${counted(bytes, "byte")}, ${counted(all, "token")}: `,
        `${figure(bytes / Math.max(1, all), 2)} bytes per token. `,
        `The tokenizer (${kind}) knows ${counted(vocabulary, "token")}.`),
      el("ol", { class: "boxes", tabindex: 0, "aria-label": "Tokens" }, ...tokens.map((each) => el("li",
        { class: each.special ? "special" : null, title: each.special ? SPECIAL : null },
        el("b", {}, visible(each.text) || "∅"), el("span", {}, each.id), el("small", {}, each.bytes)))),
      ...(left ? [el("p", { class: "note" }, `and ${counted(left, "token")} more`)] : []));
  }
}

const table = (splits) => el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Sizes" },
  el("table", { class: "runs-table" },
    el("thead", {}, el("tr", {}, ...["Part", "Documents", "Lines", "Words", "Characters", "Bytes", "Tokens"]
      .map((name, at) => el("th", { scope: "col", class: at ? "number" : null }, name)))),
    el("tbody", {}, ...Object.entries(splits).map(([name, each]) => el("tr", {},
      el("th", { scope: "row" }, { train: "training", val: "validation" }[name] ?? name),
      ...["documents", "lines", "words", "chars", "bytes", "tokens"]
        .map((key) => el("td", { class: "number" }, count(each[key]))))))));

// The most frequent entries, as bars
const bars = (title_, about, rows) => el("div", {}, el("h3", {}, title_), el("p", { class: "note" }, about),
  el("ol", { class: "tally" }, ...rows.slice(0, 12).map(([name, times, hint]) => el("li", { title: hint }, name,
    el("meter", { max: rows[0][1], value: times, "aria-hidden": "true" }), el("span", {}, count(times))))));

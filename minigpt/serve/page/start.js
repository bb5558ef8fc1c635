// A new run: a text, a time, what to expect, and the start. It runs as the ordinary command, in a process of its own.
/* global el */
import { ask } from "./api.js";
import { button, choice, code, count, during, duration, figure, labelled } from "./words.js";

export const title = "New run";
const BUDGETS = [["1m", "1 minute"], ["2m", "2 minutes"], ["5m", "5 minutes"], ["10m", "10 minutes"], ["30m", "30 minutes"], ["1h", "1 hour"], ["3h", "3 hours"]];
const SLICE = 1 << 19; // characters sent at a time

export async function show(panel, app) {
  const view = new Start(panel, app);
  await view.build();
  return () => { view.closed = true; clearTimeout(view.timer); };
}

class Start {
  constructor(panel, app) {
    Object.assign(this, { panel, app, budget: "5m", text: "" });
  }

  async build() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const found = await during(this.status, "Reading the list of texts …", () => ask("/api/texts"));
    if (!found) return;
    const file = el("input", { type: "file", accept: ".txt,.md,text/*", hidden: true });
    file.addEventListener("change", () => file.files[0] && this.send(file.files[0]));
    const drop = el("div", { class: "drop" }, el("p", {}, "Drop a text file here, or ", button("choose one", () => file.click(), { kind: "link" }), "."), file);
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (event.dataTransfer.files[0]) this.send(event.dataTransfer.files[0]);
    });
    this.source = choice([["", "Choose a text"], ...found.texts.map((name) => [name, name])], "", (name) => this.choose(name));
    this.about = el("div", {});
    this.expected = el("div", {});
    this.name = el("input", { type: "text", maxlength: 100, spellcheck: false, autocomplete: "off" });
    this.go = button("Start training", () => this.start(), { kind: "primary", disabled: true });
    this.plan = button("What to expect", () => this.expect(), { disabled: true, title: "Measures this machine for some seconds" });
    this.panel.replaceChildren(
      el("h2", {}, "1. A text"), drop, el("div", { class: "row" }, labelled("Or one that is here", this.source)), this.about,
      el("h2", {}, "2. A time"), el("div", { class: "row" }, labelled("Train for", choice(BUDGETS, this.budget, (budget) => {
        this.budget = budget;
        this.expected.replaceChildren();
      })), this.plan), this.expected,
      el("h2", {}, "3. A name"), el("div", { class: "row" }, labelled("Name of the run", this.name), this.go), this.status,
      el("p", { class: "note" }, "Size, context, batch and rates are chosen for the time that you give, as ", code("minigpt train my.txt --budget 5m"),
        " does. Any setting can be given in a terminal: ", code("minigpt train --help"), "."));
  }

  async send(file) {
    const name = await during(this.status, `Sending ${file.name} …`, async (tell) => {
      const text = await file.text();
      let at = 0, found;
      do {
        let end = Math.min(text.length, at + SLICE);
        if (end < text.length && text.charCodeAt(end - 1) >= 0xd800 && text.charCodeAt(end - 1) < 0xdc00) end -= 1; // not within a character
        found = await ask("/api/texts", { name: file.name, text: text.slice(at, end), first: at === 0, done: end === text.length });
        tell(`Sending ${file.name}: ${Math.round((100 * end) / Math.max(1, text.length))} %`);
        at = end;
      } while (at < text.length);
      return found.text;
    });
    if (!name) return;
    if (![...this.source.options].some((each) => each.value === name)) this.source.append(el("option", { value: name }, name));
    this.source.value = name;
    await this.choose(name);
  }

  async choose(name) {
    this.text = name;
    this.go.disabled = this.plan.disabled = !name;
    this.expected.replaceChildren();
    this.about.replaceChildren();
    if (!name) return;
    const stem = name.replace(/^sent: /, "").split("/").pop().replace(/\.[a-z]+$/, ""), taken = new Set(this.app.runs.map((run) => run.name));
    let free = stem;
    for (let number = 2; taken.has(free); number += 1) free = `${stem}-${number}`;
    this.name.value = free;
    const found = await during(this.status, "Looking at the text …", () => ask("/api/inspect", { text: name }));
    if (!found || this.text !== name) return;
    const sum = (key) => Object.values(found.splits).reduce((total, each) => total + each[key], 0);
    const size = sum("bytes"), repeated = found.duplicates.share;
    this.about.replaceChildren(el("dl", { class: "figures inspected" }, ...[["characters", count(sum("chars"))], ["words", count(sum("words"))], ["lines", count(sum("lines"))],
      ["different characters", count(found.characters.distinct)], ["repeated lines", `${(100 * repeated).toFixed(1)} %`],
      ["of validation also in training", found.overlap.share === null ? "–" : `${(100 * found.overlap.share).toFixed(1)} %`]]
      .map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))),
    ...(size < 50000 ? [el("p", { class: "caution" }, "The text is small: a model learns it by heart, and little of how to write. 1 MB is a good size.")] : []),
    ...found.examples.slice(0, 1).map((text) => el("blockquote", { class: "sample" }, text)));
  }

  async expect() {
    this.plan.disabled = true;
    const { text, budget } = this;
    const found = await during(this.status, "Measuring how fast this machine trains …", () => ask("/api/plan", { text, budget }));
    this.plan.disabled = false;
    if (!found || text !== this.text || budget !== this.budget) return;
    const better = found.five_gram_bits - found.predicted_bits_per_byte;
    this.expected.replaceChildren(el("dl", { class: "figures inspected" }, ...[["loss", figure(found.predicted_loss)], ["bits per byte", figure(found.predicted_bits_per_byte, 2)],
      ["a 5-gram reaches about", figure(found.five_gram_bits, 2)], ["steps", count(found.steps)], ["passes over the text", figure(found.passes, 1)],
      ["done in", duration(found.promised_seconds)]].map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))),
    ...(better < 0 ? [el("p", { class: "caution" }, "A 5-gram would do better in this time; give it more.")] : []));
  }

  async start() {
    const name = this.name.value.trim();
    const found = await during(this.status, "Starting …", () => ask("/api/start", { text: this.text, budget: this.budget, name }));
    if (!found) return;
    this.go.disabled = true;
    this.status.className = "status busy";
    this.status.textContent = "The text is prepared, and this machine is measured; the run opens as soon as it is there …";
    this.wait(found.name);
  }

  // Until the run is on disk
  async wait(name) {
    await this.app.refresh();
    if (this.closed) return;
    const run = this.app.runs.find((each) => each.name === name || each.path.endsWith(`/${name}`));
    const failed = this.app.begun?.find((each) => each.name === name)?.failed;
    if (run) this.app.go("live", run.name);
    else if (failed) {
      this.status.className = "status wrong";
      this.status.textContent = failed;
      this.go.disabled = false;
    } else this.timer = setTimeout(() => this.wait(name), 1000);
  }
}

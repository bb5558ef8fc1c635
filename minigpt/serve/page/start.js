// Start a new run: choose a text, a time and settings, see the expected loss, and start. The run is the ordinary
// command, in its own process.
/* global el */
import { ask } from "./api.js";
import { inspected } from "./data.js";
import { addText, dropPlace } from "./drop.js";
import { Form } from "./form.js";
import { button, choice, copier, count, during, duration, figure, figures, labelled, megabytes, sentence, short }
  from "./words.js";

export const title = "New run";
const BUDGETS = [["1m", "1 minute"], ["2m", "2 minutes"], ["5m", "5 minutes"], ["10m", "10 minutes"],
  ["30m", "30 minutes"], ["1h", "1 hour"], ["3h", "3 hours"], ["8h", "8 hours"], ["", "as long as the settings say"]];
const LENGTHS = ["train.max_steps", "train.max_epochs", "train.max_tokens", "train.max_minutes"];

export async function show(panel, app) {
  const view = new Start(panel, app);
  await view.build();
  return () => { view.closed = true; clearTimeout(view.timer); };
}

class Start {
  constructor(panel, app) {
    Object.assign(this, { panel, app, budget: "5m", text: "", settings: {} });
  }

  async build() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const found = await during(this.status, "Reading the list of texts …", () => ask("/api/texts"));
    if (!found) return;
    this.sending = el("p", { class: "status", role: "status" });
    const drop = dropPlace(this.sending, (name) => { addText(this.source, name); return this.choose(name); });
    this.source = choice([["", "Choose a text"], ...found.texts.map((name) => [name, name])], "",
      (name) => this.choose(name));
    this.about = el("div", {});
    this.expected = el("div", {});
    this.name = el("input", { type: "text", maxlength: 100, spellcheck: false, autocomplete: "off" });
    this.name.addEventListener("change", () => this.check());
    this.chosen = el("p", { class: "note" });
    this.go = button("Start training", () => this.start(), { kind: "primary", disabled: true });
    this.plan = button("What to expect", () => this.expect(),
      { disabled: true, title: "Measures this machine for a few seconds" });
    this.time = choice(BUDGETS, this.budget, (budget) => { this.budget = budget; this.check(); });
    this.form = new Form((settings) => { this.settings = settings; this.check(); });
    this.changes = el("span", { class: "note" });
    const fold = el("details", { class: "all-settings" },
      el("summary", {}, "Any setting ", this.changes), this.form.box);
    fold.addEventListener("toggle", () => { if (fold.open && !this.form.find) this.form.build(); });
    this.line = el("pre", { class: "line", tabindex: 0 });
    this.command = el("div", { hidden: true }, el("p", { class: "note" }, "This is the command that will run:"),
      this.line, copier(() => this.line.textContent));
    this.unused = el("div", { role: "status" });
    this.panel.replaceChildren(
      el("h2", {}, "1. A text"), drop, this.sending,
      el("div", { class: "row" }, labelled("Or choose a known text", this.source)), this.about,
      el("h2", {}, "2. A time"), el("div", { class: "row" }, labelled("Train for", this.time), this.plan),
      this.chosen, fold, this.expected,
      el("h2", {}, "3. A name"), el("div", { class: "row" }, labelled("Name of the run", this.name), this.go),
      this.status, this.command, this.unused);
    this.check();
  }

  async choose(name) {
    this.text = name;
    this.go.disabled = this.plan.disabled = !name;
    this.about.replaceChildren();
    this.expected.replaceChildren();
    if (!name) return;
    const stem = name.replace(/^sent: /, "").split("/").pop().replace(/\.[a-z]+$/, "");
    const taken = new Set(this.app.runs.map((run) => run.name));
    let free = stem;
    for (let number = 2; taken.has(free); number += 1) free = `${stem}-${number}`;
    this.name.value = free;
    this.check();
    const found = await during(this.sending, "Looking at the text …", () => ask("/api/inspect", { text: name }));
    if (found && this.text === name) this.about.replaceChildren(...inspected(found));
  }

  get asked() {
    const { text, budget, settings } = this;
    return { text, budget, settings, name: this.name.value.trim() };
  }

  // After each change, show the command's messages about the settings, and the command itself
  async check() {
    // it stays where it is: an element that moves under the pointer cannot be clicked
    this.expected.classList.add("stale");
    const changed = Object.keys(this.settings), own = LENGTHS.some((name) => changed.includes(name));
    this.changes.textContent = changed.length ? `· ${changed.length} changed` : "";
    if (own && this.budget) this.time.value = this.budget = ""; // a length among the settings replaces the time
    this.chosen.textContent = this.budget
      ? "Size, context, batch and rates are chosen for the time that you give. Settings that you give stay as they are."
      : own ? "Each setting is the default, or your own value."
        : "Set below how long to train: max steps, max epochs, max tokens or max minutes. Otherwise it is 5 minutes.";
    if (!this.text) return false;
    const asked = this.asked, found = await during(this.status, "", () => ask("/api/check", asked));
    if (!found || JSON.stringify(asked) !== JSON.stringify(this.asked)) return false;
    this.complain(found.wrong);
    this.command.hidden = !found.line;
    this.line.textContent = found.line;
    this.unused.replaceChildren(...found.unused.map((line) => el("p", { class: "note" }, line)));
    return !found.wrong.length;
  }

  complain(lines) {
    const rest = this.form.complain(lines);
    if (rest.length < lines.length) this.form.box.closest("details").open = true;
    this.say(rest.map(sentence).join(" "), "wrong");
  }

  say(text, kind) {
    this.status.className = `status ${text ? kind : ""}`;
    this.status.textContent = text;
  }

  async expect() {
    const asked = this.asked;
    this.plan.disabled = true;
    const words = asked.budget ? "Measuring how fast this machine trains …" : "Measuring size and memory …";
    const found = await this.tried(() => during(this.status, words, () => ask("/api/plan", asked)));
    this.plan.disabled = false;
    if (!found || JSON.stringify(asked) !== JSON.stringify(this.asked)) return;
    this.expected.classList.remove("stale");
    const size = [["parameters", short(found.parameters)], ["memory, about", megabytes(found.memory_bytes)]];
    const better = found.five_gram_bits - found.predicted_bits_per_byte;
    this.expected.replaceChildren(figures(asked.budget ? [["loss", figure(found.predicted_loss)],
      ["bits per byte", figure(found.predicted_bits_per_byte, 2)],
      ["a 5-gram's, about", figure(found.five_gram_bits, 2)],
      ...size, ["steps", count(found.steps)], ["passes over the text", figure(found.passes, 1)],
      ["done in", duration(found.promised_seconds)]] : size),
    ...(better < 0 ? [el("p", { class: "caution" }, "A 5-gram model would be better; give the run more time.")] : []));
  }

  // Do work whose error messages may belong to a setting: they are shown next to its field
  async tried(work) {
    const found = await work();
    if (!found) this.complain([this.status.textContent]);
    return found;
  }

  async start() {
    this.go.disabled = true;
    const found = await this.check()
      && await this.tried(() => during(this.status, "Starting …", () => ask("/api/start", this.asked)));
    if (!found) {
      this.go.disabled = !this.text;
      return;
    }
    this.say("The text is prepared, and this machine is measured; the run opens as soon as it has started …", "busy");
    this.wait(found.name);
  }

  // Wait until the run is on disk
  async wait(name) {
    await this.app.refresh();
    if (this.closed) return;
    const run = this.app.runs.find((each) => each.name === name);
    const failed = this.app.begun?.find((each) => each.name === name)?.failed;
    if (run) this.app.go("live", run.name);
    else if (failed) {
      this.complain([failed]);
      this.go.disabled = false;
    } else this.timer = setTimeout(() => this.wait(name), 1000);
  }
}

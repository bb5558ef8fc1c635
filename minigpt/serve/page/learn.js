// Continue the same prompt at every kept checkpoint, with a slider over the steps below the curve.
/* global el */
import { ask, query, stream } from "./api.js";
import { Curve } from "./curve.js";
import { button, choice, code, count, counted, during, empty, figure, labelled, link, segments } from "./words.js";

export const title = "Watch it learn";
const LENGTHS = [["40", "40 tokens"], ["100", "100 tokens"], ["200", "200 tokens"], ["400", "400 tokens"]];
export const WAYS = [["0", "the likeliest token"], ...["0.5", "0.8", "1"].map((heat) => [heat, `temperature ${heat}`])];

export async function show(panel, app) {
  const view = new Learn(panel, app);
  await view.start();
  return () => view.close();
}

class Learn {
  constructor(panel, app) {
    Object.assign(this, { panel, app, name: app.run, written: new Map(), source: "samples", length: "100", heat: "0" });
  }

  async start() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const found = await during(this.status, "Reading the run …", () => Promise.all([
      ask(`/api/run?${query({ name: this.name })}`), ask(`/api/figures?${query({ name: this.name })}`)]));
    if (!found) return;
    [this.run, { lines: this.lines }] = found;
    this.build();
  }

  close() {
    this.stop?.abort();
    this.curve?.close();
  }

  build() {
    const { run, lines } = this;
    if (!run.checkpoints.length && !run.samples.length) {
      this.panel.replaceChildren(empty("There is no checkpoint yet",
        "The first one is written at the first evaluation; wait for it at ", link("live", this.name, "Live run"), "."));
      return;
    }
    const checkpoints = counted(run.checkpoints.length, "checkpoint");
    this.source = run.samples.length > 1 ? "samples" : "mine";
    this.prompt = el("textarea", { rows: 2, spellcheck: false });
    this.prompt.value = run.prompt ?? "";
    this.go = button("Continue it at every checkpoint", () => this.write(), { kind: "primary" });
    this.halt = button("Stop", () => this.stop?.abort(), { hidden: true });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
    });
    const few = run.checkpoints.length < 4
      ? el("p", { class: "note" }, `This run kept ${checkpoints}. To see more steps, train with `,
        code("--train.keep-checkpoints 20"), ".") : "";
    this.mine = el("div", { class: "stack" }, labelled("Prompt", this.prompt),
      el("div", { class: "row" }, this.go, this.halt,
        labelled("Length", choice(LENGTHS, this.length, (value) => { this.length = value; })),
        labelled("Sampling", choice(WAYS, this.heat, (value) => { this.heat = value; }))), few);
    this.box = el("div", { class: "chart" });
    this.slider = el("input", { type: "range", min: 0, step: 1, "aria-label": "Step of the text below" });
    this.where = el("output", {});
    this.paper = el("blockquote", { class: "sample large", "aria-live": "polite" });
    this.slider.addEventListener("input", () => this.turn());
    const which = segments("Texts", [["samples", `Written while it trained (${run.samples.length})`],
      ["mine", `Your prompt at ${checkpoints}`]], this.source, (source) => { this.source = source; this.choose(); });
    this.panel.replaceChildren(which, this.mine, this.status, this.box,
      el("div", { class: "scrub" }, button("‹", () => this.move(-1), { "aria-label": "Earlier" }), this.slider,
        button("›", () => this.move(1), { "aria-label": "Later" }), this.where), this.paper);
    if (lines.length) {
      const of = (name) => lines.filter((line) => name in line).map((line) => [line.step, line[name]]);
      this.curve = new Curve(this.box, { about: "Loss over steps", height: 200, named: true,
        series: [{ name: "training", tone: "quiet", points: of("loss") },
          { name: "validation", tone: "accent", points: of("val_loss") }],
        pick: (x) => this.near(x) });
    }
    this.choose();
  }

  // The steps that have a text, or will get one
  get steps() {
    return (this.source === "samples" ? this.run.samples : this.run.checkpoints).map((each) => each.step);
  }

  choose() {
    this.mine.hidden = this.source !== "mine";
    this.slider.max = Math.max(0, this.steps.length - 1);
    this.slider.disabled = this.steps.length < 2;
    this.slider.value = this.slider.max;
    this.turn();
  }

  move(by) {
    this.slider.value = Number(this.slider.value) + by;
    this.turn();
  }

  near(x) {
    const { steps } = this;
    if (!steps.length) return;
    const far = steps.map((step) => Math.abs(step - x));
    this.slider.value = far.indexOf(Math.min(...far));
    this.turn();
  }

  turn() {
    const { steps, run } = this, at = Number(this.slider.value), step = steps[at];
    if (step === undefined) {
      this.where.textContent = "";
      this.paper.replaceChildren(el("span", { class: "given" }, this.source === "samples"
        ? "No text was written while it trained; give a prompt of your own." : "No checkpoint is kept yet."));
      return;
    }
    const line = this.lines.findLast((each) => "val_loss" in each && each.step <= step);
    this.where.textContent = `step ${count(step)}${line ? ` · validation loss ${figure(line.val_loss)}` : ""}`;
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
    if (this.curve) {
      this.curve.what.cursor = step;
      this.curve.at(step);
    }
    if (this.source === "samples") {
      const { prompt, text } = run.samples[at];
      const given = `${prompt}${text}`.trim() ? prompt : "It wrote nothing.";
      this.paper.replaceChildren(el("span", { class: "given" }, given), text);
      return;
    }
    const text = this.written.get(step);
    const waits = this.stop ? "This checkpoint will write soon."
      : "Press the button above: every checkpoint continues the prompt.";
    this.paper.replaceChildren(...(text === undefined ? [el("span", { class: "given" }, waits)]
      : [el("span", { class: "given" }, this.asked), text]));
  }

  // One checkpoint after another: each is loaded, writes, and may be unloaded again
  async write() {
    if (this.stop) return;
    this.stop = new AbortController();
    this.written = new Map();
    this.asked = this.prompt.value;
    this.go.disabled = true;
    this.halt.hidden = false;
    const steps = this.run.checkpoints.map((each) => each.step);
    await during(this.status, "", async (tell) => {
      for (const [at, step] of steps.entries()) {
        tell(`Checkpoint ${at + 1} of ${steps.length}: step ${count(step)} …`);
        if (this.source === "mine") this.slider.value = at;
        const asked = { model: `${this.name}@${step}`, prompt: this.asked, max_tokens: Number(this.length),
          temperature: Number(this.heat), seed: 0 };
        this.written.set(step, "");
        for await (const piece of stream("/v1/completions", asked, this.stop.signal)) {
          this.written.set(step, this.written.get(step) + (piece.choices[0]?.text ?? ""));
          if (this.steps[this.slider.value] === step) this.turn();
        }
      }
    });
    this.stop = null;
    this.go.disabled = false;
    this.halt.hidden = true;
    this.turn();
  }
}

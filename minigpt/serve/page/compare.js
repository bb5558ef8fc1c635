// Two models answer one prompt side by side; the curves of two runs over each other; what differs in their settings.
/* global el */
import { ask, query, stream } from "./api.js";
import { Curve } from "./curve.js";
import { button, choice, count, during, empty, labelled, segments } from "./words.js";

export const title = "Compare";

export async function show(panel, app) {
  const view = new Compare(panel, app);
  await view.start();
  return () => view.close();
}

class Compare {
  constructor(panel, app) {
    Object.assign(this, { panel, app, x: "step", figures: new Map(), closed: false });
  }

  close() {
    this.closed = true;
    this.stop?.abort();
    this.curve?.close();
  }

  async start() {
    const { app } = this;
    this.others = app.models.filter((id) => !id.startsWith(`${app.run}@`) || id.includes("+")).filter((id) => !id.includes("@"));
    const all = app.models;
    if (all.length < 2) {
      this.panel.append(empty("One model alone cannot be compared", "Train a second one, or keep more checkpoints: ",
        el("code", {}, "--train.keep-checkpoints 20"), "."));
      return;
    }
    const first = app.modelsOf(app.run)[0] ?? all[0];
    const second = this.others.find((id) => id !== first) ?? all.find((id) => id !== first);
    this.names = [first, second];
    this.status = el("p", { class: "status", role: "status" });
    this.prompt = el("textarea", { rows: 2, spellcheck: false, placeholder: "One prompt for both" });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
    });
    ask(`/api/run?${query({ name: app.run })}`).then((run) => { this.prompt.value ||= run.prompt ?? ""; }, () => null);
    this.heat = "0.8";
    this.go = button("Let both go on", () => this.write(), { kind: "primary" });
    this.halt = button("Stop", () => this.stop?.abort(), { hidden: true });
    this.papers = this.names.map(() => el("blockquote", { class: "sample" }, el("span", { class: "given" }, "…")));
    const sides = this.names.map((name, at) => el("div", { class: "stack" }, labelled(at ? "Second" : "First",
      choice(all.map((id) => [id, id]), name, (id) => { this.names[at] = id; this.draw(); })), this.papers[at]));
    this.box = el("div", { class: "chart" });
    this.curves = el("div", {}, el("div", { class: "row between" }, el("h2", {}, "Validation loss"), segments("Horizontal axis",
      [["step", "Steps"], ["tokens", "Tokens"], ["minutes", "Minutes"]], this.x, (x) => { this.x = x; this.draw(); })), this.box);
    this.settings = el("div", {});
    this.panel.replaceChildren(labelled("Prompt", this.prompt), el("div", { class: "row" }, this.go, this.halt,
      labelled("Choose", choice([["0", "always the likeliest token"], ["0.8", "temperature 0.8"], ["1", "temperature 1"]], this.heat,
        (heat) => { this.heat = heat; }))), this.status, el("div", { class: "columns" }, ...sides), this.curves, this.settings);
    await this.draw();
  }

  // The run that a model belongs to
  runOf(model) {
    return this.app.runs.map((run) => run.name).filter((name) => model === name || model.startsWith(`${name}@`) || model.startsWith(`${name}+`))
      .sort((a, b) => b.length - a.length)[0];
  }

  async draw() {
    const runs = this.names.map((name) => this.runOf(name)), different = runs[0] !== runs[1] && runs.every(Boolean);
    this.curves.hidden = !runs.some(Boolean);
    await during(this.status, "Reading the figures …", async () => {
      for (const run of new Set(runs.filter(Boolean))) {
        if (!this.figures.has(run)) this.figures.set(run, (await ask(`/api/figures?${query({ name: run })}`)).lines);
      }
    });
    const found = different ? await during(this.status, "Comparing the settings …",
      () => ask(`/api/differences?${new URLSearchParams(runs.map((run) => ["name", run]))}`)) : null;
    if (this.closed) return;
    // Losses of different tokenizers do not compare; bits per byte do
    const lines = [...new Set(runs.filter(Boolean))].map((run) => [run, this.figures.get(run) ?? []]);
    const bits = different && lines.every(([, each]) => each.some((line) => "bits_per_byte" in line));
    const value = bits ? "bits_per_byte" : "val_loss";
    const at = (line) => (this.x === "minutes" ? line.seconds / 60 : line[this.x]);
    this.curves.querySelector("h2").textContent = bits ? "Validation, bits per byte" : "Validation loss";
    const what = { about: "Validation over each other", height: 260, named: true, x: this.x,
      series: lines.map(([run, each], place) => ({ name: run, tone: place ? "second" : "accent",
        points: each.filter((line) => value in line).map((line) => [at(line), line[value]]) })) };
    if (this.curve) this.curve.show(what);
    else this.curve = new Curve(this.box, what);
    this.differ(found, runs);
  }

  differ(found, runs) {
    if (!found) {
      this.settings.replaceChildren();
      return;
    }
    const rows = Object.entries(found.settings), plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));
    this.settings.replaceChildren(el("h2", {}, "What differs in their settings"),
      ...found.cautions.map((each) => el("p", { class: "caution" }, `Caution: ${each}.`)),
      rows.length ? el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Settings" }, el("table", { class: "runs-table" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Setting"), ...runs.map((run) => el("th", { scope: "col" }, run)))),
        el("tbody", {}, ...rows.map(([name, [one, two]]) => el("tr", {}, el("td", {}, name), el("td", {}, plain(one)), el("td", {}, plain(two)))))))
        : el("p", { class: "note" }, "Nothing."));
  }

  async write() {
    if (this.stop) return;
    this.stop = new AbortController();
    this.go.hidden = true;
    this.halt.hidden = false;
    const prompt = this.prompt.value;
    const one = async (model, paper) => {
      const text = document.createTextNode("");
      paper.replaceChildren(el("span", { class: "given" }, prompt), text);
      const asked = { model, prompt, max_tokens: 200, temperature: Number(this.heat), seed: 0 };
      for await (const piece of stream("/v1/completions", asked, this.stop.signal)) text.data += piece.choices[0]?.text ?? "";
    };
    await during(this.status, `${count(2)} models write …`, () => Promise.all(this.names.map((name, at) => one(name, this.papers[at]))));
    this.stop = null;
    this.go.hidden = false;
    this.halt.hidden = true;
  }
}

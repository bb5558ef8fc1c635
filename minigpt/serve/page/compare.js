// Compare two models: they answer one prompt side by side, with the curves of their runs, and the settings that differ.
/* global el */
import { ask, query, stream } from "./api.js";
import { Curve } from "./curve.js";
import { WAYS } from "./learn.js";
import { button, choice, code, counted, during, empty, labelled, plain, segments } from "./words.js";

export const title = "Compare";
const AXES = [["step", "Steps"], ["tokens", "Tokens"], ["minutes", "Minutes"]];
const SEED = "train.seed";

export async function show(panel, app) {
  if (app.models.length < 2) {
    panel.append(empty("One model alone cannot be compared", "Train a second one, or keep more checkpoints: ",
      code("--train.keep-checkpoints 20"), "."));
    return () => null;
  }
  const view = new Compare(panel, app);
  view.build();
  await view.draw();
  return () => view.close();
}

// Whether only the seed differs, apart from settings of what is written or printed
function onlySeed(settings) {
  const names = Object.keys(settings).filter((name) => !name.startsWith("logging."));
  return names.length === 1 && names[0] === SEED;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

class Compare {
  constructor(panel, app) {
    Object.assign(this, { panel, app, x: "step", heat: "0.8", figures: new Map(), seeds: new Map(), closed: false });
    const first = app.modelsOf(app.run)[0] ?? app.models[0];
    const others = app.models.filter((id) => id !== first);
    this.names = [first, others.find((id) => this.runOf(id) !== this.runOf(first)) ?? others[0]];
  }

  close() {
    this.closed = true;
    this.stop?.abort();
    this.curve?.close();
  }

  build() {
    const { app, names } = this;
    this.status = el("p", { class: "status", role: "status" });
    this.prompt = el("textarea", { rows: 2, spellcheck: false, placeholder: "One prompt for both" });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
    });
    ask(`/api/run?${query({ name: app.run })}`).then((run) => { this.prompt.value ||= (run.prompt ?? "").trim(); },
      () => null);
    this.go = button("Continue with both", () => this.write(), { kind: "primary", title: "Ctrl + Enter" });
    this.halt = button("Stop", () => this.stop?.abort(), { hidden: true });
    this.papers = names.map(() => el("blockquote", { class: "sample", tabindex: 0 },
      el("span", { class: "given" }, "Its text appears here.")));
    const sides = names.map((name, at) => el("div", { class: "stack" }, labelled(at ? "Second model" : "First model",
      choice(app.models.map((id) => [id, id]), name, (id) => { names[at] = id; this.draw(); })), this.papers[at]));
    this.box = el("div", { class: "chart" });
    this.heading = el("h2", {}, "Validation loss");
    this.curves = el("div", {}, el("div", { class: "row between" }, this.heading,
      segments("Horizontal axis", AXES, this.x, (x) => { this.x = x; this.draw(); })), this.box);
    this.settings = el("div", {});
    this.panel.replaceChildren(labelled("Prompt", this.prompt), el("div", { class: "row" }, this.go, this.halt,
      labelled("Sampling", choice(WAYS, this.heat, (heat) => { this.heat = heat; }))), this.status,
    el("div", { class: "columns" }, ...sides), this.curves, this.settings);
  }

  // The run that a model belongs to
  runOf(model) {
    const runs = this.app.runs.map((run) => run.name).sort((a, b) => b.length - a.length);
    return runs.find((name) => model === name || model.startsWith(`${name}@`) || model.startsWith(`${name}+`));
  }

  differences(one, two) { return ask(`/api/differences?${new URLSearchParams([["name", one], ["name", two]])}`); }

  // A run, and those that differ from it only in the seed
  async group(name) {
    const own = this.app.runs.find((run) => run.name === name);
    const like = this.app.runs.filter((run) => run !== own && run.data === own.data
      && run.parameters === own.parameters);
    const found = await Promise.all(like.map((run) => this.differences(name, run.name)));
    return [name, ...like.filter((_, at) => onlySeed(found[at].settings)).map((run) => run.name)];
  }

  async read(name) {
    if (!this.seeds.has(name)) this.seeds.set(name, await this.group(name));
    await Promise.all(this.seeds.get(name).filter((each) => !this.figures.has(each)).map(async (each) => {
      this.figures.set(each, (await ask(`/api/figures?${query({ name: each })}`)).lines);
    }));
  }

  async draw() {
    const names = this.names.join(), runs = this.names.map((name) => this.runOf(name));
    const shown = [...new Set(runs.filter(Boolean))];
    this.curves.hidden = !shown.length;
    const found = await during(this.status, "Reading the figures …", async () => {
      for (const run of shown) await this.read(run);
      return shown.length === 2 ? this.differences(...shown) : { settings: {}, cautions: [] };
    });
    if (!found || this.closed || names !== this.names.join()) return; // another model was chosen since
    this.chart(shown);
    this.settings.replaceChildren(...(shown.length === 2 ? this.differ(found, shown) : []));
  }

  chart(runs) {
    const same = runs.length === 2 && this.seeds.get(runs[0]).includes(runs[1]); // one band shows both
    const groups = (same ? runs.slice(0, 1) : runs).map((run) => this.seeds.get(run));
    // Losses of different tokenizers cannot be compared; bits per byte can
    const has = (run) => this.figures.get(run).some((line) => "bits_per_byte" in line);
    const bits = runs.length === 2 && groups.flat().every(has), value = bits ? "bits_per_byte" : "val_loss";
    this.heading.textContent = bits ? "Validation, bits per byte" : "Validation loss";
    const what = { about: `${this.heading.textContent} of ${runs.join(" and ")}`, height: 272, named: true, x: this.x,
      format: (value, exact) => (exact ? value.toFixed(4) : plain(value)),
      series: groups.map((group, at) => this.series(group, value, at ? "second" : "accent")) };
    if (this.curve) this.curve.show(what);
    else this.curve = new Curve(this.box, what);
  }

  // The line of a run; for several seeds the mean, and the band from lowest to highest, at steps where all have a value
  series(group, value, tone) {
    const of = (line) => [this.x === "minutes" ? line.seconds / 60 : line[this.x], line[value]];
    const lines = group.map((run) => new Map(this.figures.get(run).filter((line) => value in line)
      .map((line) => [line.step, of(line)])));
    const rows = [...lines[0].keys()].filter((step) => lines.every((each) => each.has(step)))
      .map((step) => lines.map((each) => each.get(step)));
    const points = rows.map((row) => [mean(row.map(([x]) => x)), mean(row.map(([, y]) => y))]);
    const one = group.length === 1;
    if (one || !rows.length) return { name: `${group[0]}${rows.length ? "" : " (no figures yet)"}`, tone, points };
    const edge = (row, outer) => outer(...row.map(([, y]) => y));
    const band = rows.map((row, at) => [points[at][0], edge(row, Math.min), edge(row, Math.max)]);
    return { name: `${group[0]}: mean of ${counted(group.length, "seed")}, and their range`, tone, points, band };
  }

  differ({ settings, cautions }, runs) {
    const rows = Object.entries(settings);
    const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
    const head = ["Setting", ...runs].map((name) => el("th", { scope: "col" }, name));
    return [el("h2", {}, "What differs in their settings"),
      ...cautions.map((each) => el("p", { class: "caution" }, `Caution: ${each}.`)),
      rows.length ? el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Settings that differ" },
        el("table", { class: "runs-table" }, el("thead", {}, el("tr", {}, ...head)),
          el("tbody", {}, ...rows.map(([name, values]) => el("tr", {}, el("th", { scope: "row" }, name),
            ...values.map((value) => el("td", {}, asText(value))))))))
        : el("p", { class: "note" }, "All their settings are equal.")];
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
      for await (const piece of stream("/v1/completions", asked, this.stop.signal)) {
        text.data += piece.choices[0]?.text ?? "";
      }
    };
    await during(this.status, "Both models write …",
      () => Promise.all(this.names.map((name, at) => one(name, this.papers[at]))));
    this.stop.abort(); // if one of them failed, the other still writes
    this.stop = null;
    this.go.hidden = false;
    this.halt.hidden = true;
  }
}

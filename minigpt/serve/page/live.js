// Show a run while it trains: its curves, what happened, the time left, Stop and Resume.
/* global el */
import { ask, query } from "./api.js";
import { Curve } from "./curve.js";
import { store } from "./storage.js";
import { button, code, copier, count, counted, during, duration, empty, figure, megabytes, plain, segments, sentence,
  short } from "./words.js";

export const title = "Live run";
const FAST = 1500, SLOW = 6000; // milliseconds between two requests, while it trains and while it does not
const FLOORS = { uniform: "any byte at random", unigram: "single bytes", five_gram: "5-gram", xz: "xz",
  entropy: "the grammar's own entropy", surprisal: "the grammar on this text" };

export async function show(panel, app) {
  const view = new Live(panel, app);
  await view.start();
  return () => view.close();
}

// The share of a run that is done at a line of metrics, measured by the limit that it will reach first
export const progress = (line, limits) => Math.max(0, ...Object.entries(limits)
  .map(([name, most]) => (line?.[name] ?? 0) / most));

// Seconds that are left, at the speed of the last lines
export function left(lines, limits) {
  const last = lines[lines.length - 1], some = lines[Math.max(0, lines.length - 12)];
  const done = progress(last, limits), before = progress(some, limits);
  const speed = (done - before) / ((last?.seconds ?? 0) - (some?.seconds ?? 0));
  return speed > 0 && done < 1 ? (1 - done) / speed : NaN;
}

class Live {
  constructor(panel, app) {
    this.app = app;
    this.name = app.run;
    this.lines = [];
    this.incidents = [];
    this.unit = localStorage.getItem("minigpt-unit") || "loss";
    this.open = true;
    this.panel = panel;
    this.curves = {};
  }

  async start() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const found = await during(this.status, "Reading the run …", () => this.read());
    if (found === undefined || !this.open) return;
    this.build();
    this.draw();
    this.wait();
  }

  close() {
    this.open = false;
    clearTimeout(this.timer);
    for (const curve of Object.values(this.curves)) curve.close();
  }

  // Read the run, and the lines that are not known yet
  async read() {
    const after = this.lines.length ? this.lines[this.lines.length - 1].step : -1;
    let found = await ask(`/api/figures?${query({ name: this.name, after })}`);
    if (found.last < after || found.incidents.length !== this.incidents.length) { // the run rolled back
      this.lines = [];
      found = await ask(`/api/figures?${query({ name: this.name, after: -1 })}`);
    }
    const more = found.lines.length > 0, before = this.state;
    const last = this.lines.at(-1)?.step ?? -1; // another request may have brought some of them
    // not push(...), which fails for more lines than a call may have arguments
    this.lines = this.lines.concat(found.lines.filter((line) => line.step > last));
    this.incidents = found.incidents;
    this.state = found.state !== "running" && found.starting ? "starting" : found.state;
    this.failed = found.failed;
    if (more || !this.run || before !== this.state) this.run = await ask(`/api/run?${query({ name: this.name })}`);
    this.run.floors = { ...this.floors, ...this.run.floors };
    return true;
  }

  wait() {
    clearTimeout(this.timer);
    const busy = this.state === "running" || this.state === "starting";
    this.timer = setTimeout(async () => {
      if (!document.hidden) {
        let lost = "";
        try {
          await this.read();
          if (this.open) this.draw();
        } catch (error) {
          lost = sentence(error.message);
        }
        if (lost || this.lost) this.status.textContent = lost; // the server may come back
        this.lost = lost;
      }
      if (this.open) this.wait();
    }, busy ? FAST : SLOW);
  }

  build() {
    this.act = el("div", { class: "row" });
    this.figures = el("dl", { class: "figures" });
    this.bar = el("progress", { max: 1, "aria-label": "Share of the run that is done" });
    this.floorRow = el("div", { class: "row" });
    this.events = el("div", {});
    this.sample = el("div", {});
    this.about = el("div", { class: "columns" });
    this.uses = el("p", { class: "note" });
    const box = (name) => el("div", { class: "chart", id: `chart-${name}` });
    this.boxes = { loss: box("loss"), lr: box("lr"), grad_norm: box("grad_norm"), tokens_per_second: box("speed") };
    this.units = segments("Unit of the loss", [["loss", "Loss"], ["bits", "Bits per byte"]], this.unit, (unit) => {
      this.unit = unit;
      store("minigpt-unit", unit);
      this.draw();
    });
    const small = (name, about) => el("figure", { class: "small-chart" },
      el("figcaption", {}, about), this.boxes[name]);
    this.charts = el("div", {},
      el("div", { class: "row between" }, el("h2", {}, "Loss"), el("div", { class: "row" }, this.floorRow, this.units)),
      this.boxes.loss,
      el("div", { class: "small-charts" }, small("lr", "Learning rate"), small("grad_norm", "Gradient norm"),
        small("tokens_per_second", "Tokens per second")));
    this.none = el("div", {});
    this.panel.replaceChildren(el("div", { class: "row between top" }, this.figures, this.act), this.bar, this.status,
      this.none, this.charts, this.events, this.sample, this.about);
  }

  draw() {
    const { run, lines, state } = this, last = lines[lines.length - 1];
    this.buttons();
    this.head(last);
    this.charts.hidden = lines.length === 0;
    this.none.replaceChildren(...(lines.length ? [] : [state === "running" || state === "starting"
      ? empty("The run is starting", "It prepares its text and measures this machine; the first figures come soon.")
      : empty("This run has no figures yet", "Resume it here, or in a terminal: ",
        code(`minigpt train ${run.path}/config.yaml`))]));
    if (this.failed || this.toldFailure) {
      this.toldFailure = this.failed;
      this.status.className = this.failed ? "status wrong" : "status";
      this.status.textContent = this.failed ? `It could not continue: ${this.failed}` : "";
    }
    if (lines.length) this.chart();
    this.happened();
    this.text();
    this.more();
  }

  buttons() {
    const { state } = this;
    if (state !== "running") this.stopping = false;
    if (this.drawn === `${state} ${this.stopping}`) return;
    this.drawn = `${state} ${this.stopping}`;
    const does = (path, words) => async () => {
      const done = await during(this.status, words, () => ask(path, { name: this.name }));
      this.stopping = Boolean(done) && path === "/api/stop";
      await this.app.refresh();
      clearTimeout(this.timer);
      await this.read().catch(() => null);
      if (!this.open) return;
      this.draw();
      this.wait();
    };
    const stop = button("Stop", does("/api/stop", "Asking the run to stop …"),
      { title: "Like Ctrl-C: the run ends after this step, and is saved" });
    const resume = button("Resume", does("/api/resume", "Starting …"),
      { kind: "primary", title: "Continues from the newest checkpoint, as the command does" });
    const waits = (words) => el("span", { class: "status busy" }, words);
    const found = { running: [this.stopping ? waits("Stopping after this step; the run is saved …") : stop],
      starting: [waits("Starting …")], interrupted: [resume], finished: [] };
    this.act.replaceChildren(...found[state]);
  }

  head(last) {
    const { run, lines, state } = this, val = lines.findLast((line) => "val_loss" in line);
    const loss = lines.findLast((line) => "loss" in line), limit = run.limits.step;
    const time = left(lines, run.limits), busy = state === "running";
    const items = [
      ["step", last ? `${count(last.step)}${limit ? ` of ${count(limit)}` : ""}` : "–"],
      ["training loss", loss ? figure(loss.loss) : "–"],
      ["validation loss", val ? figure(val.val_loss) : "–"],
      ...(val?.bits_per_byte ? [["bits per byte", figure(val.bits_per_byte)]] : []),
      ["tokens per second", last?.tokens_per_second ? count(last.tokens_per_second) : "–"],
      busy ? ["time left", duration(time)] : ["trained for", duration(last?.seconds)],
    ];
    this.figures.replaceChildren(...items.map(([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    const done = progress(last, run.limits);
    this.bar.hidden = !Object.keys(run.limits).length;
    this.bar.value = state === "finished" ? 1 : Math.min(1, done);
    this.bar.title = `${Math.round(100 * Math.min(1, done))} %`;
  }

  // Floors are in bits per byte; a line that has both losses gives nats per token for each bit per byte
  ratio() {
    const both = this.lines.findLast((line) => line.bits_per_byte && line.val_loss);
    return both ? both.val_loss / both.bits_per_byte : null;
  }

  chart() {
    const { lines, run } = this, ratio = this.ratio(), bits = this.unit === "bits" && ratio;
    const unit = bits ? 1 / ratio : 1;
    const of = (name, by = 1) => lines.filter((line) => name in line).map((line) => [line.step, line[name] * by]);
    const levels = ratio ? Object.entries(run.floors).filter(([name]) => name !== "surprisal")
      .map(([name, level]) => ({ name: FLOORS[name] ?? name, value: bits ? level : level * ratio })) : [];
    const marks = this.incidents.map((each) => ({ x: each.step,
      name: `step ${each.step}: ${each.what}; ${each.action}` }));
    const words = bits ? "bits per byte" : "finetune.dpo_beta" in run.settings ? "nats per pair" : "nats per token";
    const last = lines[lines.length - 1];
    this.put("loss", { about: `Loss in ${words} over ${last.step} steps`, height: 320, levels, marks, named: true,
      format: (value, exact) => (exact ? value.toFixed(4) : plain(value)),
      series: [{ name: "training", tone: "quiet", points: of("loss", unit) },
        { name: "validation", tone: "accent", points: of("val_loss", unit), dots: of("val_loss").length < 60 }] });
    const single = (name, about, more) => this.put(name, { about, height: 150, marks, ...more,
      series: [{ name: about, tone: "accent", points: of(name) }] });
    single("lr", "rate", { zero: true });
    single("grad_norm", "gradient norm", { zero: true });
    single("tokens_per_second", "tokens per second", { zero: true, format: short });
    this.units.hidden = !ratio; // without bits per byte there is nothing to choose
    this.floorButton(ratio);
  }

  put(name, what) {
    if (this.curves[name]) this.curves[name].show(what);
    else this.curves[name] = new Curve(this.boxes[name], what);
  }

  floorButton(ratio) {
    if (!ratio || Object.keys(this.run.floors).length || this.asking) {
      this.floorRow.hidden = true;
      return;
    }
    this.floorRow.hidden = false;
    if (this.floorRow.childElementCount) return;
    this.floorRow.append(button("Measure the floors", async () => {
      this.asking = true;
      this.floorRow.hidden = true;
      this.floors = await during(this.status, "Measuring a 5-gram model and xz on the same text …",
        () => ask("/api/floors", { name: this.name }));
      this.asking = false;
      if (this.floors && this.open) {
        this.run.floors = this.floors;
        this.draw();
      }
    }, { kind: "small", title: "Measures simpler models on the same text; the run does this itself at its end" }));
  }

  happened() {
    const skipped = this.lines.reduce((sum, line) => sum + (line.skipped ?? 0), 0);
    const rows = this.incidents.slice(-20).reverse().map((each) => el("li", {},
      el("b", {}, `Step ${count(each.step)}: ${each.action}.`), ` ${sentence(each.what)}`,
      each.checkpoint ? `; rolled back to ${each.checkpoint}, continues at ${each.rate_scale} of the rate.` : "."));
    if (skipped) {
      rows.push(el("li", {}, `${counted(skipped, "step")} changed no weight, because a figure was NaN or infinite.`));
    }
    this.events.replaceChildren(...(rows.length
      ? [el("h2", {}, "What happened"), el("ul", { class: "events" }, ...rows)] : []));
  }

  text() {
    const sample = this.run.samples[this.run.samples.length - 1];
    if (!sample || this.sample.dataset.step === String(sample.step)) return;
    this.sample.dataset.step = sample.step;
    this.sample.replaceChildren(el("h2", {}, `What it wrote at step ${count(sample.step)}`),
      el("blockquote", { class: "sample" }, el("span", { class: "given" }, sample.prompt), sample.text));
  }

  more() {
    const { run } = this, usage = run.process?.usage;
    this.uses.textContent = usage ? `Process ${run.process.pid} uses ${megabytes(usage.bytes)} of memory, `
      + `and used the processor for ${duration(usage.seconds)}.` : "";
    this.uses.hidden = !usage;
    const settings = Object.entries(run.settings);
    const text = JSON.stringify([run.command, settings]);
    if (text === this.shown) return; // else Copy would lose the click each time that the run wrote a line
    this.shown = text;
    this.about.replaceChildren(
      el("div", {}, el("h2", {}, "Settings that are not the defaults"), settings.length
        ? el("dl", { class: "pairs" }, ...settings.flatMap(([name, value]) => [el("dt", {}, name),
          el("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]))
        : el("p", { class: "note" }, "All are the defaults.")),
      el("div", {}, el("h2", {}, "To repeat it"), el("pre", { class: "line", tabindex: 0 }, run.command),
        el("div", { class: "row" }, copier(() => run.command)), this.uses));
  }
}

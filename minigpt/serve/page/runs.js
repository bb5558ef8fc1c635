// Show all runs in a table: sort, filter, write a note, star, copy the command that repeats a run, delete; and the
// memory used.
/* global el */
import { ask, query } from "./api.js";
import { forget } from "./chat.js";
import { askFirst, button, code, copier, count, counted, during, duration, empty, figure, megabytes, segments, short,
  when } from "./words.js";

export const title = "Runs";
const COLUMNS = [
  ["name", "Name"], ["state", "State"], ["data", "Text"], ["parameters", "Size"], ["steps", "Steps"],
  ["best_val_loss", "Validation"], ["bits_per_byte", "Bits per byte"], ["minutes", "Time"], ["started", "Started"],
];
const NUMBERS = new Set(["parameters", "steps", "best_val_loss", "bits_per_byte", "minutes"]);
const STATES = { running: "training", interrupted: "stopped", finished: "finished" };
const SHOWN = [["all", "All"], ["star", "Starred"], ["running", "Training"], ["interrupted", "Stopped"],
  ["finished", "Finished"]];
const EVERY = 2000; // milliseconds between two requests

export async function show(panel, app) {
  const view = new Runs(panel, app);
  view.build();
  return () => clearInterval(view.timer);
}

class Runs {
  constructor(panel, app) {
    Object.assign(this, { panel, app, sort: "started", down: true, only: "all", open: "", used: new Map(),
      lines: new Map() });
  }

  build() {
    this.filter = el("input", { type: "search", placeholder: "Name, text or note", "aria-label": "Filter",
      autocomplete: "off" });
    this.filter.addEventListener("input", () => this.draw());
    this.status = el("p", { class: "status", role: "status" });
    this.table = el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Runs" });
    this.use = el("div", {});
    const some = segments("Show", SHOWN, this.only, (only) => { this.only = only; this.draw(); });
    this.panel.replaceChildren(el("div", { class: "row" }, this.filter, some), this.status, this.table, this.use);
    this.draw();
    this.timer = setInterval(() => this.later(), EVERY);
  }

  // Draw, or leave it to the timer: a button that is pressed would lose the click, and a marked command its mark
  later() {
    const line = this.table.querySelector("pre.line"), { type, anchorNode } = getSelection();
    const marked = type === "Range" && line?.contains(anchorNode);
    if (!marked && !this.table.matches(":active")) this.draw();
  }

  get rows() {
    const wanted = this.filter.value.trim().toLowerCase(), { sort } = this;
    const some = this.app.runs
      .filter((run) => `${run.name} ${run.data} ${run.note}`.toLowerCase().includes(wanted))
      .filter((run) => this.only === "all" || (this.only === "star" ? run.star : run.state === this.only));
    const known = some.filter((run) => run[sort] !== null);
    known.sort((a, b) => (a[sort] < b[sort] ? -1 : a[sort] > b[sort] ? 1 : 0) * (this.down ? -1 : 1));
    return [...known, ...some.filter((run) => run[sort] === null)];
  }

  // Drawn again only if something changed, and not while a person writes a note
  draw() {
    this.memory();
    const { rows } = this, text = JSON.stringify([rows, this.sort, this.down, this.open, this.app.runs.length]);
    const writing = this.table.contains(document.activeElement) && document.activeElement.matches("textarea");
    if (text === this.drawn || writing) return;
    this.drawn = text;
    if (!rows.length) {
      this.table.replaceChildren(this.app.runs.length ? empty("No run matches", "Clear the filter, or choose All.")
        : empty("No runs yet", el("a", { href: "#start/" }, "Start one here"), ", or in a terminal: ",
          code("minigpt train my.txt"), ". It appears here by itself."));
      return;
    }
    const head = COLUMNS.map(([key, name]) => el("th", { scope: "col", class: NUMBERS.has(key) ? "number" : "",
      "aria-sort": this.sort === key ? (this.down ? "descending" : "ascending") : null },
    el("button", { type: "button", "data-key": key, onclick: () => this.by(key) }, name,
      el("span", { class: "arrow", "aria-hidden": "true" }, this.sort === key ? (this.down ? "↓" : "↑") : ""))));
    const focused = this.table.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.table.replaceChildren(el("table", { class: "runs-table" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "hidden" }, "Star")), ...head)),
      el("tbody", {}, ...rows.flatMap((run) => this.row(run)))));
    if (focused) this.table.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  by(key) {
    this.down = this.sort === key ? !this.down : key === "started" || key === "steps";
    this.sort = key;
    this.draw();
  }

  row(run) {
    const value = { state: STATES[run.state], data: run.data.split("/").pop(), parameters: short(run.parameters),
      steps: count(run.steps), best_val_loss: figure(run.best_val_loss), bits_per_byte: figure(run.bits_per_byte),
      minutes: duration(60 * run.minutes), started: when(run.started) };
    const star = el("button", { type: "button", class: "star-button", "data-key": `star ${run.name}`,
      "aria-pressed": String(run.star), "aria-label": `Star ${run.name}`,
      onclick: () => this.change(run, { star: !run.star }) }, run.star ? "★" : "☆");
    const name = el("button", { type: "button", class: "link", "data-key": `run ${run.name}`,
      "aria-expanded": String(this.open === run.name),
      onclick: () => { this.open = this.open === run.name ? "" : run.name; this.draw(); } }, run.name);
    const note = run.note ? el("p", { class: "note" }, run.note) : "";
    const made = [el("tr", { class: run.state }, el("td", {}, star), el("td", {}, name, note),
      ...COLUMNS.slice(1).map(([key]) => el("td", { class: NUMBERS.has(key) ? "number" : "" }, value[key])))];
    if (this.open === run.name) {
      made.push(el("tr", { class: "more" }, el("td", { colspan: COLUMNS.length + 1 }, this.details(run))));
    }
    return made;
  }

  details(run) {
    const note = el("textarea", { rows: 2, maxlength: 10000, placeholder: "A note about this run",
      "aria-label": `Note about ${run.name}` });
    note.value = run.note;
    note.addEventListener("change", () => this.change(run, { note: note.value.trim() }));
    const line = el("pre", { class: "line", tabindex: 0, "data-key": `line ${run.name}` },
      this.lines.get(run.name) ?? "Reading the line that repeats it …");
    ask(`/api/run?${query({ name: run.name })}`).then(({ command }) => {
      this.lines.set(run.name, command);
      if (line.textContent !== command) line.textContent = command;
    }, (error) => { line.textContent = error.message; });
    const copy = copier(() => line.textContent, "Copy the line that repeats it");
    copy.dataset.key = `copy ${run.name}`;
    const { process } = run, uses = process?.usage && el("p", { class: "note" },
      `Process ${process.pid} trains it: ${this.uses(process.pid, process.usage)}.`);
    return el("div", { class: "stack" }, note, line, uses || "", el("div", { class: "row" },
      button("Open", () => this.app.go("live", run.name), { kind: "small", "data-key": `open ${run.name}` }), copy,
      button("Delete", () => this.remove(run), { kind: "small danger", "data-key": `delete ${run.name}` })));
  }

  async change(run, values) {
    const found = await during(this.status, "Saving …", () => ask("/api/note", { name: run.name, ...values }));
    if (found) Object.assign(run, found);
    this.later();
    await this.app.refresh();
  }

  async remove(run) {
    if (run.state === "running") {
      this.status.className = "status wrong";
      this.status.textContent = `${run.name} is being trained; stop it first.`;
      return;
    }
    const sure = await askFirst(`Delete ${run.name}?`, `All its files are deleted: ${run.path}. This cannot be undone.`,
      "Delete it");
    if (!sure) return;
    if (!await during(this.status, "Deleting …", () => ask("/api/delete", { name: run.name }))) return;
    forget(run.name);
    this.open = "";
    if (this.app.run === run.name) {
      this.app.run = "";
      history.replaceState(null, "", "#runs/");
    }
    await this.app.refresh();
    this.draw();
  }

  // Memory, and the cores used since the last request
  uses(pid, { bytes, seconds }) {
    const at = performance.now() / 1000, before = this.used.get(pid);
    if (!before || seconds !== before.seconds) {
      const share = before && (seconds - before.seconds) / (at - before.at);
      this.used.set(pid, { seconds, at, share });
    }
    const { share } = this.used.get(pid);
    return megabytes(bytes) + (share === undefined ? "" : `, ${Math.round(100 * share)} % of one core`);
  }

  memory() {
    const { server } = this.app;
    if (!server) return;
    const { usage, models, folder } = server;
    const held = models.map((each) => `${each.name} (${megabytes(each.bytes)})`).join(", ");
    const rows = [["Folder", folder], ...(usage ? [["It uses", this.uses(0, usage)]] : []),
      [models.length ? `${counted(models.length, "model")} in memory` : "Models in memory", held || "none"]];
    const text = JSON.stringify(rows);
    if (text === this.shown) return;
    this.shown = text;
    this.use.replaceChildren(el("h2", {}, "This server"), el("dl", { class: "pairs" },
      ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  }
}

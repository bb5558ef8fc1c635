// All runs in a table: sort, filter, a note, a star, the line that repeats a run, deleting; what the processes use.
/* global el */
import { ask, query } from "./api.js";
import { askFirst, button, copier, count, during, duration, empty, figure, megabytes, segments, short, when } from "./words.js";

export const title = "Runs";
const COLUMNS = [
  ["name", "Name"], ["state", "State"], ["data", "Text"], ["parameters", "Size"], ["steps", "Steps"],
  ["best_val_loss", "Validation"], ["bits_per_byte", "Bits per byte"], ["minutes", "Time"], ["started", "Begun"],
];
const NUMBERS = new Set(["parameters", "steps", "best_val_loss", "bits_per_byte", "minutes"]);

export async function show(panel, app) {
  const view = new Runs(panel, app);
  view.build();
  return () => clearInterval(view.timer);
}

class Runs {
  constructor(panel, app) {
    Object.assign(this, { panel, app, sort: "started", down: true, only: "all", text: "", open: "" });
  }

  build() {
    this.filter = el("input", { type: "search", placeholder: "Name, text or note", "aria-label": "Filter", autocomplete: "off" });
    this.filter.addEventListener("input", () => this.draw());
    this.status = el("p", { class: "status", role: "status" });
    this.table = el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Runs" });
    this.use = el("div", {});
    this.panel.replaceChildren(el("div", { class: "row" }, this.filter,
      segments("Show", [["all", "All"], ["star", "Starred"], ["running", "Training"], ["interrupted", "Stopped"], ["finished", "Finished"]],
        this.only, (only) => { this.only = only; this.draw(); })), this.status, this.table, this.use);
    this.draw();
    this.timer = setInterval(() => this.draw(), 2000);
  }

  get rows() {
    const wanted = this.filter.value.trim().toLowerCase(), { sort } = this;
    const some = this.app.runs.filter((run) => `${run.name} ${run.data} ${run.note}`.toLowerCase().includes(wanted))
      .filter((run) => this.only === "all" || (this.only === "star" ? run.star : run.state === this.only));
    const known = some.filter((run) => run[sort] !== null);
    known.sort((a, b) => (a[sort] < b[sort] ? -1 : a[sort] > b[sort] ? 1 : 0) * (this.down ? -1 : 1));
    return [...known, ...some.filter((run) => run[sort] === null)];
  }

  // Drawn again only where something changed, so that a note that is being written stays
  draw() {
    this.memory();
    const { rows } = this, text = JSON.stringify([rows, this.sort, this.down, this.open, this.app.runs.length]);
    if (text === this.drawn || this.table.contains(document.activeElement) && document.activeElement.matches("input, textarea")) return;
    this.drawn = text;
    if (!rows.length) {
      this.table.replaceChildren(this.app.runs.length ? empty("No run is like this", "Clear the filter, or choose All.")
        : empty("No runs yet", "Train one in a terminal: ", el("code", {}, "minigpt train my.txt"), ". It appears here by itself."));
      return;
    }
    const head = COLUMNS.map(([key, name]) => el("th", { scope: "col", class: NUMBERS.has(key) ? "number" : "",
      "aria-sort": this.sort === key ? (this.down ? "descending" : "ascending") : null },
    el("button", { type: "button", "data-key": key, onclick: () => this.by(key) }, name,
      el("span", { class: "arrow", "aria-hidden": "true" }, this.sort === key ? (this.down ? "↓" : "↑") : ""))));
    const focused = this.table.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.table.replaceChildren(el("table", { class: "runs-table" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" },
      el("span", { class: "hidden" }, "Star")), ...head)), el("tbody", {}, ...rows.flatMap((run) => this.row(run)))));
    if (focused) this.table.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  by(key) {
    this.down = this.sort === key ? !this.down : key === "started" || key === "steps";
    this.sort = key;
    this.draw();
  }

  row(run) {
    const value = { state: { running: "training", interrupted: "stopped", finished: "finished" }[run.state], data: run.data.split("/").pop(),
      parameters: short(run.parameters), steps: count(run.steps), best_val_loss: figure(run.best_val_loss), bits_per_byte: figure(run.bits_per_byte),
      minutes: duration(60 * run.minutes), started: when(run.started) };
    const star = el("button", { type: "button", class: "star-button", "data-key": `star ${run.name}`, "aria-pressed": String(run.star),
      "aria-label": `Star ${run.name}`, onclick: () => this.change(run, { star: !run.star }) }, run.star ? "★" : "☆");
    const name = el("button", { type: "button", class: "link", "data-key": `run ${run.name}`, "aria-expanded": String(this.open === run.name),
      onclick: () => { this.open = this.open === run.name ? "" : run.name; this.draw(); } }, run.name);
    const made = [el("tr", { class: run.state }, el("td", {}, star), el("td", {}, name, run.note ? el("p", { class: "note" }, run.note) : ""),
      ...COLUMNS.slice(1).map(([key]) => el("td", { class: NUMBERS.has(key) ? "number" : "" }, value[key])))];
    if (this.open === run.name) made.push(el("tr", { class: "more" }, el("td", { colspan: COLUMNS.length + 1 }, this.details(run))));
    return made;
  }

  details(run) {
    const note = el("textarea", { rows: 2, maxlength: 10000, placeholder: "A note about this run", "aria-label": `Note about ${run.name}` });
    note.value = run.note;
    note.addEventListener("change", () => this.change(run, { note: note.value.trim() }));
    const line = el("pre", { class: "line", tabindex: 0 }, "…");
    ask(`/api/run?${query({ name: run.name })}`).then((found) => { line.textContent = found.command; },
      (error) => { line.textContent = error.message; });
    return el("div", { class: "stack" }, note, line, el("div", { class: "row" },
      button("Open", () => this.app.go("live", run.name), { kind: "small" }), copier(() => line.textContent, "Copy the line that repeats it"),
      button("Delete", () => this.remove(run), { kind: "small danger" })));
  }

  async change(run, values) {
    const found = await during(this.status, "Saving …", () => ask("/api/note", { name: run.name, ...values }));
    if (found) Object.assign(run, found);
    document.activeElement?.matches("textarea") && document.activeElement.blur();
    this.draw();
    await this.app.refresh();
  }

  async remove(run) {
    if (run.state === "running") {
      this.status.className = "status wrong";
      this.status.textContent = `${run.name} is being trained; stop it first.`;
      return;
    }
    const sure = await askFirst(`Delete ${run.name}?`, `All its files go: ${run.path}. This cannot be undone.`, "Delete it");
    if (!sure) return;
    await during(this.status, "Deleting …", () => ask("/api/delete", { name: run.name }));
    this.open = "";
    if (this.app.run === run.name) this.app.run = "";
    await this.app.refresh();
    this.draw();
  }

  memory() {
    const { server } = this.app;
    if (!server) return;
    const now = performance.now(), { usage, models, folder } = server;
    if (usage && this.last && usage.seconds !== this.last.seconds) {
      this.share = (usage.seconds - this.last.seconds) / ((now - this.last.at) / 1000);
    }
    if (usage && (!this.last || usage.seconds !== this.last.seconds)) this.last = { seconds: usage.seconds, at: now };
    const text = JSON.stringify([usage, models, this.share]);
    if (text === this.told) return;
    this.told = text;
    this.use.replaceChildren(el("h2", {}, "This server"), el("dl", { class: "pairs" },
      el("dt", {}, "Folder"), el("dd", {}, folder),
      ...(usage ? [el("dt", {}, "Memory"), el("dd", {}, megabytes(usage.bytes)), el("dt", {}, "Processor"),
        el("dd", {}, this.share === undefined ? "–" : `${Math.max(0, Math.round(100 * this.share))} % of one core`)] : []),
      el("dt", {}, "Models in memory"), el("dd", {}, models.map((each) => `${each.name} (${megabytes(each.bytes)})`).join(", ") || "none")));
  }
}

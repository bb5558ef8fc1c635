// The frame of the page: the list of runs, the chosen run, and the part that is shown. The address has both: #live/my
/* global el */
import { ask, door, keep, Problem, unanswered } from "./api.js";
import { button, counted, empty, megabytes, sentence, short } from "./words.js";
import * as live from "./live.js";
import * as learn from "./learn.js";
import * as notebook from "./notebook.js";
import * as why from "./why.js";
import * as inside from "./inside.js";
import * as compare from "./compare.js";
import * as chat from "./chat.js";
import * as data from "./data.js";
import * as runs from "./runs.js";
import * as start from "./start.js";

const PARTS = { live, learn, notebook, why, inside, compare, chat, data, runs, start };
const OF_ALL = new Set(["runs", "start"]); // parts that are not about one run
const EVERY = 4000; // milliseconds between two requests for the list of runs
const find = (id) => document.getElementById(id);

// Shared by all parts
export const app = {
  runs: [], damaged: [], server: null, models: [], run: "", part: "live",
  // The row of the chosen run
  get line() { return this.runs.find((run) => run.name === this.run); },
  // The models of the run: itself, its checkpoints, its adapters; none if it has no checkpoint
  modelsOf(name) {
    return this.models.filter((id) => id === name || id.startsWith(`${name}@`) || id.startsWith(`${name}+`));
  },
  go(part, run = this.run) { location.hash = `${part}/${encodeURIComponent(run)}`; },
  // Read the list again. An answer to an earlier request may not know what has just changed, so it is dropped
  async refresh() {
    answered = asked + 1;
    await look();
  },
};

let close = () => null, shown = "", timer = 0;
let asked = 0, answered = 0; // requests for the list of runs: an answer that a later one overtook is dropped

function read() {
  const [part, run] = location.hash.slice(1).split("/");
  let name = "";
  try {
    name = decodeURIComponent(run || "");
  } catch { /* % without its two digits: no run has such a name */
    name = "";
  }
  return [part in PARTS ? part : "live", name];
}

async function look() {
  const number = (asked += 1);
  try {
    const [found, models] = await Promise.all([ask("/api/runs"), ask("/v1/models")]);
    if (number < answered) return;
    answered = number;
    Object.assign(app, found, { models: models.data.map((model) => model.id) });
    tell("");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    tell(error.message);
  }
  if (!app.run && app.runs.length) {
    app.run = newest(app.runs).name;
    tabs();
  }
  list();
  head();
}

const newest = (found) => found.reduce((a, b) => (rank(b) > rank(a) ? b : a));
const rank = (run) => `${run.state === "running" ? 1 : 0}${run.started}`;

function tell(text) {
  find("alert").hidden = !text;
  if (find("alert").textContent !== text) find("alert").textContent = text && sentence(text);
}

// --- the left column ---

const STATES = { running: "training now", starting: "starting", interrupted: "stopped", finished: "finished" };
const stateOf = (run) => (run.state !== "running" && run.starting ? "starting" : run.state);

function list() {
  const wanted = find("find").value.trim().toLowerCase();
  const some = app.runs.filter((run) => `${run.name} ${run.note}`.toLowerCase().includes(wanted))
    .sort((a, b) => (b.star - a.star) || (rank(b) > rank(a) ? 1 : -1));
  const items = some.map((run) => {
    const score = run.bits_per_byte ?? run.best_val_loss;
    const unit = run.bits_per_byte !== null ? "bits per byte" : "validation loss";
    return el("a", { href: `#${app.part}/${encodeURIComponent(run.name)}`, class: `run ${stateOf(run)}`,
      "aria-current": run.name === app.run ? "page" : null },
    el("span", { class: "run-name" }, el("span", { class: "lamp", title: STATES[stateOf(run)] }), run.name,
      run.star ? el("span", { class: "star", title: "starred" }, "★") : ""),
    el("span", { class: "run-facts" }, STATES[stateOf(run)],
      run.steps === 1 ? " · 1 step" : ` · ${short(run.steps)} steps`,
      score === null ? "" : el("span", { title: unit }, ` · ${score.toFixed(3)}`)));
  });
  const damaged = app.damaged.map((run) => el("p", { class: "note wrong" }, `${run.name} cannot be read: ${run.why}`));
  const why = !app.server ? "Reading the runs …" : app.runs.length ? "No run has this text in its name or note." : "No runs yet.";
  const none = some.length ? [] : [el("p", { class: "note" }, why)];
  const text = JSON.stringify([wanted, app.part, app.run, some, app.damaged, Boolean(app.server)]);
  if (text !== list.text && !find("runs").matches(":active")) { // a link that is pressed would lose the click
    const focused = find("runs").contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    find("runs").replaceChildren(...items, ...damaged, ...none);
    if (focused) items.find((item) => item.getAttribute("href") === focused)?.focus();
    list.text = text;
  }
  if (app.server) {
    const { usage, models, version } = app.server;
    const held = `${models.length ? counted(models.length, "model") : "no model"} in memory`;
    find("server").textContent = `minigpt ${version} · ${held}${usage ? ` · ${megabytes(usage.bytes)}` : ""}`;
  }
}

function head() {
  const run = app.line;
  const all = { runs: ["All runs", counted(app.runs.length, "run")],
    start: ["A new run", "From your own text to your own model"] }[app.part];
  const facts = all ? all.slice(1) : !run ? [] : [STATES[stateOf(run)],
    run.parameters === null ? "" : `${short(run.parameters)} parameters`,
    run.data ? `learns from ${run.data.split("/").pop()}` : ""];
  find("title").textContent = all?.[0] ?? run?.name ?? "minigpt";
  document.title = `${all?.[0] ?? run?.name ?? "runs"} · minigpt`;
  find("facts").textContent = facts.filter(Boolean).join(" · ");
}

function tabs() {
  const focused = find("tabs").contains(document.activeElement);
  find("tabs").replaceChildren(...Object.entries(PARTS).filter(([id]) => id !== "start").map(([id, part]) => el("a",
    { href: `#${id}/${encodeURIComponent(app.run)}`, "aria-current": id === app.part ? "page" : null }, part.title)));
  const here = find("tabs").querySelector("[aria-current]");
  here?.scrollIntoView({ block: "nearest", inline: "center" });
  if (focused) here?.focus({ preventScroll: true });
}

// --- what is shown ---

async function show() {
  if (!app.server) await look();
  const [part, name] = read(); // not earlier: the address may change while the list of runs is read
  app.part = part;
  if (name && name !== app.run) app.run = name;
  list();
  head();
  tabs();
  const place = `${part}/${app.run}`;
  if (place === shown) return;
  shown = place;
  close();
  close = () => null;
  const panel = el("div", { class: `part ${part}` });
  find("panel").replaceChildren(panel);
  unfold(false);
  if (!app.line && !OF_ALL.has(part)) {
    if (app.server) panel.append(app.runs.length
      ? empty(`There is no run called ${app.run}`, "Choose one in the list of runs.")
      : empty("Train your first model", el("a", { href: "#start/" }, "Start one here"), ", or in a terminal: ",
        el("code", {}, "minigpt train my.txt"), ". It appears here as soon as it starts."));
    shown = "";
    return;
  }
  const before = unanswered.count, done = await PARTS[part].show(panel, app);
  if (!panel.isConnected) {
    done();
    return;
  }
  close = done;
  if (unanswered.count > before) shown = ""; // `again` opens it once more
}

function unfold(open) {
  find("shelf").classList.toggle("open", open);
  find("unfold").setAttribute("aria-expanded", String(open));
}

// The key of the server, if it has one. `wrong`: the server did not accept the last one
door.ask = (wrong) => {
  door.asking ||= new Promise((done) => {
    const field = el("input",
      { type: "password", autocomplete: "current-password", required: true, pattern: "[ -~]+", "aria-label": "Key",
        title: "Letters, digits and signs of ASCII" });
    const form = el("form", { method: "dialog" }, el("h2", {}, "The key of this server"),
      el("p", {}, wrong ? "This key is wrong. " : "",
        "It was given with --api-key, or printed when the server started."), field,
      el("div", { class: "row end" }, button("Open", () => form.requestSubmit(), { kind: "primary" })));
    const box = el("dialog", { class: "ask", "aria-label": "The key of this server" }, form);
    box.addEventListener("cancel", (event) => event.preventDefault());
    box.addEventListener("close", () => { if (box.isConnected) box.showModal(); }); // Escape twice closes it in Chrome
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      keep(field.value.trim());
      box.close();
      box.remove();
      door.asking = null;
      done();
    });
    document.body.append(box);
    box.showModal();
  });
  return door.asking;
};

function again() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (!document.hidden) {
      await look();
      const answers = find("alert").hidden;
      if (answers && !shown && (app.line || OF_ALL.has(app.part))) await show();
    }
    again();
  }, EVERY);
}

find("find").addEventListener("input", list);
// Not as a link: the address says which part is shown
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  find("panel").focus();
});
find("unfold").addEventListener("click", () => unfold(!find("shelf").classList.contains("open")));
addEventListener("hashchange", show);
for (const kind of ["dragover", "drop"]) { // a file that misses the place for texts would open instead of the page
  addEventListener(kind, (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
await show();
document.documentElement.dataset.ready = "";
again();

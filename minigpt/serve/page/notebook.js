// Let a person and the model write one text together.
/* global el */
import { ask, query, stream } from "./api.js";
import { Ghost } from "./ghost.js";
import { Settings } from "./settings.js";
import { store } from "./storage.js";
import { button, choice, count, counted, during, empty, labelled, link } from "./words.js";

export const title = "Notebook";
const TEXT = "minigpt-notebook"; // key in the browser's storage: one text for all runs, which stays in this browser
const AHEAD = 16; // tokens of a suggestion

export const notebookText = () => localStorage.getItem(TEXT) ?? "";
export const keepText = (text) => store(TEXT, text);
// Set by another part if the model should continue the text at once
export const pending = { go: false };

// The models of a run as a choice; "" if it has none yet
export function models(app, act) {
  const all = app.modelsOf(app.run);
  const label = (id) => {
    if (id === app.run) return "best checkpoint";
    return id.includes("@") ? `step ${count(Number(id.split("@").pop()))}` : `adapter ${id.slice(app.run.length + 1)}`;
  };
  return choice(all.map((id) => [id, label(id)]), all[0] ?? "", act);
}

export const noModel = (name) => empty("This run has no checkpoint yet",
  "A model can write as soon as the first one is saved; see ", link("live", name, "Live run"), ".");

export async function show(panel, app) {
  if (!app.modelsOf(app.run).length) await app.refresh();
  if (!app.modelsOf(app.run).length) {
    panel.append(noModel(app.run));
    return () => null;
  }
  const view = new Notebook(panel, app);
  await view.start();
  return () => view.close();
}

class Notebook {
  constructor(panel, app) {
    Object.assign(this, { panel, app, past: [], future: [], many: 1, stop: null });
  }

  async start() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const run = await during(this.status, "Reading the run …",
      () => ask(`/api/run?${query({ name: this.app.run })}`));
    if (!run) return;
    this.settings = new Settings(run.generation);
    await this.settings.build();
    this.build(run);
    if (pending.go) {
      pending.go = false;
      this.write(); // not awaited: a part that is shown can be closed, which stops the writing
    }
  }

  close() {
    this.stop?.abort();
    this.ghost?.clear();
  }

  build(run) {
    this.model = models(this.app, () => this.ghost.clear());
    this.area = el("textarea", { class: "paper", rows: 16, spellcheck: false, "aria-label": "The text",
      placeholder: "Write the beginning of a text, and let the model continue it." });
    this.area.value = notebookText() || (run.prompt ?? "").trim();
    this.kept = keepText(this.area.value); // not at the end: another tab may have changed it by then
    this.ghost = new Ghost(this.area, (text, signal) => this.suggest(text, signal), () => this.remember());
    this.ghost.on = localStorage.getItem("minigpt-suggest") !== "no";
    this.go = button("Continue", () => this.write(), { kind: "primary", title: "Ctrl + Enter" });
    this.halt = button("Stop", () => this.stop?.abort(), { title: "Escape", hidden: true });
    this.back = button("Undo", () => this.undo(), { title: "Ctrl + Z" });
    this.forth = button("Redo", () => this.redo());
    const beside = choice(["1", "2", "3", "4"].map((n) => [n, n]), "1", (n) => { this.many = Number(n); });
    const suggest = el("input", { type: "checkbox" });
    suggest.checked = this.ghost.on;
    suggest.addEventListener("change", () => {
      this.ghost.on = suggest.checked;
      store("minigpt-suggest", suggest.checked ? "yes" : "no");
      if (!suggest.checked) this.ghost.clear();
    });
    this.area.addEventListener("input", () => this.typed());
    this.area.addEventListener("change", () => {
      this.before = this.text;
      this.kept = keepText(this.text);
      this.counts();
    });
    this.panel.onkeydown = (event) => this.key(event);
    this.choices = el("div", { class: "choices" });
    this.count = el("span", { class: "note" });
    this.settings.changed = () => this.ghost.clear();
    this.panel.replaceChildren(el("div", { class: "beside" },
      el("div", { class: "stack" }, this.ghost.box,
        el("div", { class: "row tools" }, this.go, this.halt, this.back, this.forth, labelled("Continuations", beside),
          el("label", { class: "check" }, suggest, "Suggest while I write (Tab takes a word)")),
        this.status, this.count, this.choices),
      el("details", { class: "side", open: innerWidth > 900 }, el("summary", {}, "Settings"),
        labelled("Model", this.model), this.settings.box)));
    this.before = this.area.value;
    this.ghost.paint();
    this.counts();
    this.buttons();
  }

  get text() { return this.area.value; }

  put(text) {
    clearTimeout(this.typing);
    this.typing = undefined; // what is typed next is a step of its own
    this.area.value = this.before = text;
    this.area.scrollTop = this.area.scrollHeight;
    this.ghost.paint();
    this.kept = keepText(text);
    this.counts();
  }

  counts() {
    const words = this.text.trim() ? this.text.trim().split(/\s+/).length : 0;
    const size = `${counted(words, "word")}, ${counted([...this.text].length, "character")}`;
    this.count.textContent = `${size}. The text ${this.kept ? "stays in this browser"
      : "does not fit into this browser's storage; copy it before you leave"}.`;
  }

  // --- undo ---

  remember(text = this.text) {
    if (this.past.at(-1) !== text) this.past.push(text);
    if (this.past.length > 500) this.past.shift();
    this.future = [];
    this.buttons();
  }

  // Everything typed without a pause is one undo step
  typed() {
    if (this.typing === undefined) this.remember(this.before);
    clearTimeout(this.typing);
    this.typing = setTimeout(() => { this.typing = undefined; this.before = this.text; }, 700);
    this.before = this.text;
    this.kept = keepText(this.text);
    this.counts();
  }

  step(from, to) {
    if (!from.length || this.stop) return;
    this.ghost.clear();
    to.push(this.text);
    this.put(from.pop());
    this.buttons();
  }

  undo() { this.step(this.past, this.future); }

  redo() { this.step(this.future, this.past); }

  buttons() {
    const busy = Boolean(this.stop);
    this.go.hidden = busy;
    this.halt.hidden = !busy;
    this.back.disabled = busy || !this.past.length;
    this.forth.disabled = busy || !this.future.length;
    this.area.readOnly = busy;
  }

  key(event) {
    const control = event.ctrlKey || event.metaKey, back = control && event.key.toLowerCase() === "z";
    if (control && event.key === "Enter") this.write();
    else if (event.key === "Escape" && this.stop) this.stop.abort();
    else if (back && event.target === this.area) event.shiftKey ? this.redo() : this.undo();
    else return;
    event.preventDefault();
  }

  // --- writing ---

  async suggest(text, signal) {
    if (this.stop) return "";
    const ahead = { prompt: text, max_tokens: AHEAD, temperature: 0 };
    const asked = { ...this.settings.request, model: this.model.value, ...ahead };
    return (await ask("/v1/completions", asked, signal)).choices[0].text;
  }

  async write() {
    if (this.stop) return;
    this.ghost.clear();
    this.stop = new AbortController();
    this.remember();
    this.choices.replaceChildren();
    this.buttons();
    const asked = { ...this.settings.request, model: this.model.value, prompt: this.text, n: this.many };
    await during(this.status, "Writing …", () => (this.many > 1 ? this.beside(asked) : this.on(asked)));
    this.stop = null;
    this.buttons();
    if (this.many === 1) {
      this.area.focus();
      this.area.selectionStart = this.area.selectionEnd = this.text.length;
    }
  }

  async on(asked) {
    for await (const piece of stream("/v1/completions", asked, this.stop.signal)) {
      const text = piece.choices[0]?.text;
      if (text) this.put(this.text + text);
    }
  }

  async beside(asked) {
    const texts = Array.from({ length: asked.n }, () => "");
    const cards = texts.map((_, at) => el("article", { class: "card" }, el("p", { class: "written" }),
      button("Use this one", () => {
        this.remember();
        this.put(asked.prompt + texts[at]);
        this.choices.replaceChildren();
        this.area.focus();
      }, { kind: "small" })));
    this.choices.replaceChildren(...cards);
    for await (const piece of stream("/v1/completions", asked, this.stop.signal)) {
      for (const { index, text } of piece.choices) {
        texts[index] += text;
        cards[index].firstChild.textContent = texts[index];
      }
    }
  }
}

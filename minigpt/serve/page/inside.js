// Look inside the model at the notebook's text: attention, logit lens, heads and residual stream, in explain's own
// pictures. Heads and layers can be switched off or scaled, and all pictures follow.
/* global el, drawExplanation, constants, edges, percent, token, nats */
import { ask, read } from "./api.js";
import { keepText, models, noModel, notebookText } from "./notebook.js";
import { button, count, counted, during, labelled } from "./words.js";

export const title = "Look inside";
const PAUSE = 500; // milliseconds after the last letter

export async function show(panel, app) {
  if (!app.modelsOf(app.run).length) await app.refresh();
  if (!app.modelsOf(app.run).length) {
    panel.append(noModel(app.run));
    return () => null;
  }
  const view = new Inside(panel, app);
  await view.start();
  return () => view.close();
}

class Inside {
  constructor(panel, app) {
    Object.assign(this, { panel, app, factors: {}, drawn: null, plain: null });
    this.off = new Set(); // switched-off heads, as layer * H + head, as the pictures need them
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.again = () => this.drawn?.colours();
    this.wider = () => { if (this.pictures.clientWidth > 100) this.drawn?.draw(); }; // when hidden, it has no width
  }

  async start() {
    this.area = el("textarea", { rows: 2, spellcheck: false, placeholder: "A text to look into" });
    this.area.value = notebookText();
    this.area.addEventListener("input", () => {
      keepText(this.area.value);
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.look(), PAUSE);
    });
    this.model = models(this.app, () => { this.allOn(); this.look(); });
    this.status = el("p", { class: "status", role: "status" });
    this.effect = el("div", { class: "effect", "aria-live": "polite" });
    this.layers = el("details", { class: "side layers-off" }, el("summary", {}, "Scale or switch off layers"));
    this.pictures = el("div", { class: "pictures", hidden: true });
    this.steps = el("div", { class: "scrub" },
      button("‹", () => this.move(-1), { id: "earlier", "aria-label": "One token back" }),
      el("input", { type: "range", id: "position", min: 0, value: 0, "aria-label": "Position in the text",
        oninput: (event) => this.drawn?.choose(Number(event.target.value)) }),
      button("›", () => this.move(1), { id: "later", "aria-label": "One token forward" }),
      el("output", { id: "where" }));
    this.panel.replaceChildren(labelled("Text (the notebook's); the pictures follow as you write", this.area),
      el("div", { class: "row" }, labelled("Model", this.model)), this.status, this.effect, this.layers, this.pictures);
    // The same files as on explain's page; they hold no text of a run
    const part = async (name, around) => new DOMParser().parseFromString(
      `<${around}>${await read(`/page/explain/${name}`)}</${around}>`, "text/html").body.firstElementChild;
    const found = await during(this.status, "Reading …",
      () => Promise.all([part("symbols.html", "dl"), part("sections.html", "div")]));
    if (!found) return;
    const [symbols, sections] = found;
    symbols.className = "symbols";
    this.pictures.append(this.steps, el("details", {}, el("summary", {}, "How to read the pictures"), symbols),
      ...sections.children);
    for (const box of this.pictures.querySelectorAll(".scroll")) box.addEventListener("scroll", () => edges(box));
    this.dark.addEventListener("change", this.again);
    addEventListener("resize", this.wider);
    await this.look();
  }

  close() {
    clearTimeout(this.timer);
    this.stop?.abort();
    this.dark.removeEventListener("change", this.again);
    removeEventListener("resize", this.wider);
  }

  move(by) {
    if (this.drawn) this.drawn.choose(Math.max(0, Math.min(this.drawn.last, this.drawn.state.token + by)));
  }

  allOn() {
    this.factors = {};
    this.off.clear();
    this.plain = null;
    this.layers.replaceChildren(this.layers.firstElementChild);
  }

  async look() {
    this.stop?.abort();
    this.stop = new AbortController();
    const text = this.area.value, asked = { model: this.model.value, text, factors: this.factors };
    if (!text) {
      this.effect.replaceChildren("Write a text above.");
      this.pictures.hidden = true;
      return;
    }
    const { signal } = this.stop;
    const both = await during(this.status, "Looking inside …", async () => {
      const changed = Object.keys(this.factors).length > 0, key = `${asked.model} ${text}`;
      if (changed && this.plain?.key !== key) {
        this.plain = { key, data: await ask("/api/inside", { ...asked, factors: {} }, signal) };
      }
      const data = await ask("/api/inside", asked, signal);
      if (!changed) this.plain = { key, data };
      return [data, changed ? this.plain.data : null];
    });
    if (!both || signal.aborted || !this.panel.isConnected) return; // another part is shown now
    this.draw(...both);
  }

  draw(data, plain) {
    this.pictures.hidden = false;
    constants(data);
    this.sliders(data.model);
    const before = this.drawn ? this.drawn.state : null;
    const toggle = (layer, head) => this.head(layer, head, data.model.heads);
    this.drawn = drawExplanation(data, before, { off: this.off, toggle });
    for (const box of this.pictures.querySelectorAll(".equation")) edges(box);
    this.differs(data, plain);
    const { texts, left_out: cut } = data;
    if (cut) this.status.textContent = `The last ${count(texts.length)} tokens are read, ${count(cut)} are not.`;
  }

  head(layer, head, heads) {
    const at = layer * heads + head, name = `head ${layer}.${head}`;
    if (this.off.delete(at)) delete this.factors[name];
    else {
      this.off.add(at);
      this.factors[name] = 0;
    }
    this.look();
  }

  sliders({ layers }) {
    if (this.layers.childElementCount > 1) return;
    const names = Array.from({ length: layers }, (_, layer) => [`attention ${layer}`, `feed-forward ${layer}`]).flat();
    const all = button("All as trained", () => {
      this.allOn();
      this.layers.firstElementChild.focus(); // the button is gone
      this.look();
    }, { kind: "small" });
    this.layers.append(el("div", { class: "scales" }, ...names.map((name) => {
      const range = el("input", { type: "range", min: 0, max: 2, step: 0.1, value: 1 });
      const shown = el("output", {}, "× 1");
      range.addEventListener("input", () => {
        shown.textContent = range.value === "0" ? "off" : `× ${range.value}`;
        if (range.value === "1") delete this.factors[name];
        else this.factors[name] = Number(range.value);
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.look(), PAUSE / 2);
      });
      return el("div", { class: "scale" }, labelled(name, range), shown);
    })), all);
  }

  // How the change affects the loss and the next token
  differs(data, plain) {
    if (!plain) {
      this.effect.replaceChildren();
      return;
    }
    const mean = ({ loss }) => loss.slice(1).reduce((sum, value) => sum + value, 0) / (loss.length - 1);
    const next = (found) => {
      const { ids, probs } = found.lens, last = ids.length - 1, end = found.texts.length - 1;
      return ids[last][end].slice(0, 5)
        .map((id, k) => el("li", {}, token(found.vocabulary[id]), ` ${percent(probs[last][end][k])}`));
    };
    const by = mean(data) - mean(plain), parts = Object.keys(this.factors).length;
    const loss = el("p", {}, `With ${counted(parts, "part")} changed, the loss of this text is `,
      el("b", {}, `${nats(mean(data))} nats`), ` instead of ${nats(mean(plain))} `,
      `(${by >= 0 ? "+" : "−"}${Math.abs(by).toFixed(3)}).`);
    const known = data.loss.length > 1; // the first token is not predicted, so one token alone has no loss
    this.effect.replaceChildren(known ? loss : "", el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Next token, as trained"), el("ol", {}, ...next(plain))),
      el("div", {}, el("h3", {}, "Next token, changed"), el("ol", {}, ...next(data)))));
  }
}

// Show why a word was written: tokens coloured by surprise, the likelier tokens at each place. The text can be
// continued from any of them.
/* global el, visible, token, percent, roving */
import { ask } from "./api.js";
import { keepText, models, noModel, notebookText, pending } from "./notebook.js";
import { button, count, counted, during, labelled } from "./words.js";

export const title = "Why this word";

export async function show(panel, app) {
  if (!app.modelsOf(app.run).length) await app.refresh();
  if (!app.modelsOf(app.run).length) {
    panel.append(noModel(app.run));
    return () => null;
  }
  const view = new Why(panel, app);
  view.build();
  if (view.area.value) await view.look();
  return () => view.stop?.abort();
}

class Why {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
  }

  build() {
    this.area = el("textarea", { rows: 3, spellcheck: false, placeholder: "A text for the model to read" });
    this.area.value = notebookText();
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.look();
    });
    this.model = models(this.app, () => this.look());
    this.status = el("p", { class: "status", role: "status" });
    this.tokens = el("div", { class: "text", role: "group", "aria-label": "The tokens of the text; arrow keys move" });
    this.legend = el("div", { class: "legend" });
    this.side = el("div", { class: "likeliest", "aria-live": "polite" });
    this.panel.replaceChildren(
      el("p", { class: "lead-in" }, "The stronger the colour, the less the model expected the token. Point at a token ",
        "to see which tokens were likelier there. Choose one of these to continue from there."),
      labelled("Text (the notebook's)", this.area), el("div", { class: "row" },
        button("Read it", () => this.look(), { kind: "primary", title: "Ctrl + Enter" }),
        labelled("Model", this.model)),
      this.status, el("div", { class: "beside" }, el("div", {}, this.tokens, this.legend), this.side));
  }

  async look() {
    this.stop?.abort();
    this.stop = new AbortController();
    if (!this.area.value) {
      this.tokens.replaceChildren(el("span", { class: "given" }, "Write a text above, then press Read it."));
      this.legend.replaceChildren();
      this.side.replaceChildren();
      return;
    }
    keepText(this.area.value);
    const found = await during(this.status, "Reading …",
      () => ask("/api/why", { model: this.model.value, text: this.area.value }, this.stop.signal));
    if (!found) return;
    this.found = found;
    this.letters = Array.from(found.text);
    this.draw();
  }

  draw() {
    const { tokens, vocabulary, left_out: cut } = this.found, blind = Math.log(vocabulary);
    const known = tokens.filter((each) => each.loss !== null), apart = tokens.some((each) => each.text?.length > 1);
    this.spans = tokens.map((each, at) => {
      const end = each.text === null;
      const about = end ? "what comes next" : each.loss === null ? "the first token, which is not predicted"
        : `${each.loss.toFixed(2)} nats, rank ${each.rank}`;
      const parts = end ? ["?"] : each.text.split(/(?=\n)/).flatMap((part) => (part[0] === "\n"
        ? [el("span", { class: "space", "aria-hidden": "true" }, "↵"), part] : [part]));
      const kind = `surprising${apart ? " apart" : ""}${end ? " next-place" : ""}`;
      return el("span", { class: kind, role: "button", tabindex: -1, title: about,
        "aria-label": `${end ? "the end" : visible(each.text)}, ${about}`,
        style: { "--v": Math.min(1, (each.loss ?? 0) / blind) },
        onmouseenter: () => this.pinned || this.point(at), onfocus: () => this.point(at),
        onclick: () => { this.pinned = true; this.point(at); } }, ...parts);
    });
    this.tokens.replaceChildren(...this.spans);
    this.tokens.onmouseleave = () => { this.pinned = false; };
    roving(this.tokens, this.spans, 10);
    const mean = known.reduce((sum, each) => sum + each.loss, 0) / Math.max(1, known.length);
    const first = known.filter((each) => each.rank === 1).length / known.length;
    this.legend.replaceChildren("0 nats", el("span", { class: "ramp" }),
      `${blind.toFixed(1)} nats: a blind guess among ${counted(vocabulary, "token")}`,
      known.length ? el("p", {}, `Mean ${mean.toFixed(3)} nats. ${percent(first)} were the likeliest token.`) : "",
      cut ? el("p", {}, `The model reads ${count(tokens.length - 1)} tokens, not the first ${count(cut)}.`)
        : "");
    this.point(tokens.length - 1);
  }

  point(at) {
    const { tokens, left_out: cut } = this.found, here = tokens[at];
    for (const [place, span] of this.spans.entries()) {
      span.classList.toggle("chosen", place === at);
      span.tabIndex = place === at ? 0 : -1;
    }
    if (!here.likeliest.length) {
      this.side.replaceChildren(el("h2", {}, token(here.text)), el("p", { class: "note" },
        `The first token${cut ? " that is read" : ""}: there is no token before it, so it is not predicted.`));
      return;
    }
    const most = here.likeliest[0].probability, own = Math.exp(-(here.loss ?? 0));
    const head = here.text === null ? [el("h2", {}, "What comes next")]
      : [el("h2", {}, "Why ", token(here.text), "?"), el("p", { class: "note" },
        here.rank === 1 ? "It was the likeliest token: "
          : `${counted(here.rank - 1, "token")} ${here.rank === 2 ? "was" : "were"} likelier `
            + `(rank ${count(here.rank)}): `,
        el("b", {}, percent(own)), `, ${here.loss.toFixed(2)} nats of surprise.`)];
    const bar = (each) => el("span", {},
      el("span", { class: "bar-fill", style: { width: `${(100 * each.probability) / most}%` } }));
    const rows = here.likeliest.map((each) => el("button", { type: "button", onclick: () => this.goOn(here, each),
      class: each.id === here.id ? "bar-row own" : "bar-row", title: "Continue from here with this token" },
    el("span", { class: "bar-token" }, token(each.text)), bar(each),
    el("span", { class: "bar-value" }, percent(each.probability))));
    this.side.replaceChildren(...head,
      el("div", { class: "bars", role: "group", "aria-label": "The likeliest tokens" }, ...rows),
      el("p", { class: "note" }, "Choose a token: the notebook opens with the text before this place and your token, ",
        "and the model writes the rest."));
  }

  goOn(here, chosen) {
    keepText(this.letters.slice(0, here.begin).join("") + chosen.plain);
    pending.go = true;
    this.app.go("notebook");
  }
}

// Show the settings of generation as sliders: each can be reset to the run's own value; presets are those of the
// command.
/* global el */
import { ask } from "./api.js";
import { button, during } from "./words.js";

// name, label, least, most, step
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05], ["top_p", "Top-p", 0.05, 1, 0.01], ["top_k", "Top-k", 0, 200, 1],
  ["min_p", "Min-p", 0, 0.5, 0.01], ["typical_p", "Typical-p", 0.05, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", 0.8, 2, 0.05], ["presence_penalty", "Presence penalty", -2, 2, 0.1],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1], ["max_new_tokens", "New tokens", 1, 1000, 1],
];

export class Settings {
  // own: the run's settings of generation; changed: called after each change
  constructor(own, changed = () => null) {
    this.own = own;
    this.changed = changed;
    this.values = { ...Object.fromEntries(SLIDERS.map(([name]) => [name, own[name]])), seed: null };
    this.rows = new Map();
    this.help = {};
    this.box = el("div", { class: "settings" });
  }

  async build() {
    this.status = el("p", { class: "status", role: "status" });
    const found = await ask("/api/presets").catch(() => ({ presets: {}, help: {} }));
    this.help = found.help;
    this.box.replaceChildren(this.presets(found), ...SLIDERS.map((row) => this.slider(row)), this.seed(), this.status);
    return this.box;
  }

  // The part of a request that holds them
  get request() {
    const { max_new_tokens: most, seed, ...rest } = this.values;
    return { ...rest, max_tokens: most, ...(seed === null ? {} : { seed }) };
  }

  slider([name, label, least, most, step]) {
    const range = el("input", { type: "range", id: `set-${name}`, min: least,
      max: Math.max(most, this.own[name]), step });
    const number = el("input", { type: "number", min: least, step: "any", "aria-label": `${label}, as a number` });
    const reset = button("↺", () => this.set(name, this.own[name]), { kind: "reset",
      title: `Back to ${this.own[name]}, the run's own`, "aria-label": `${label}: back to the run's own` });
    range.addEventListener("input", () => this.set(name, Number(range.value)));
    number.addEventListener("change", () => { if (number.value !== "") this.set(name, Number(number.value)); });
    this.rows.set(name, { range, number, reset });
    const row = el("div", { class: "setting" },
      el("label", { for: range.id, title: this.help[name] ?? "" }, label), reset, number, range);
    this.paint(name);
    return row;
  }

  seed() {
    const number = el("input", { type: "number", id: "set-seed", min: 0, step: 1, placeholder: "another each time" });
    number.addEventListener("change", () => {
      this.values.seed = number.value === "" ? null : Math.max(0, Math.round(Number(number.value)));
      this.changed();
    });
    this.seedField = number;
    return el("div", { class: "setting seed" },
      el("label", { for: number.id, title: "The same seed writes the same text" }, "Seed"), number);
  }

  set(name, value) {
    this.values[name] = value;
    this.paint(name);
    this.changed();
  }

  paint(name) {
    const row = this.rows.get(name);
    if (!row) return;
    row.range.value = row.number.value = this.values[name];
    row.reset.classList.toggle("idle", this.values[name] === this.own[name]);
  }

  presets({ presets, file }) {
    const select = el("select", { "aria-label": "Preset" });
    const fill = (all) => {
      this.known = all;
      select.replaceChildren(el("option", { value: "" }, "The run's own settings"),
        ...Object.keys(all).map((name) => el("option", { value: name }, name)));
    };
    fill(presets);
    select.addEventListener("change", () => {
      const chosen = { ...this.own, ...(this.known[select.value] ?? {}) };
      for (const name of this.rows.keys()) this.set(name, chosen[name]);
      this.values.seed = "seed" in (this.known[select.value] ?? {}) ? chosen.seed : null;
      this.seedField.value = this.values.seed ?? "";
    });
    const name = el("input", { type: "text", placeholder: "name", "aria-label": "Name of the new preset",
      maxlength: 100, hidden: true });
    const keep = async () => {
      if (name.hidden) {
        name.hidden = false;
        name.focus();
        return;
      }
      if (!name.value.trim()) {
        name.hidden = true;
        return;
      }
      const differs = Object.fromEntries([...this.rows.keys()].filter((each) => this.values[each] !== this.own[each])
        .map((each) => [each, this.values[each]]));
      if (this.values.seed !== null) differs.seed = this.values.seed;
      const found = await during(this.status, "Saving …",
        () => ask("/api/presets", { name: name.value.trim(), settings: differs }));
      if (!found) return;
      fill(found.presets);
      select.value = name.value.trim();
      name.value = "";
      name.hidden = true;
    };
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") keep();
      if (event.key === "Escape") name.hidden = true;
    });
    return el("div", { class: "presets" }, select, name,
      button("Save as preset", keep, { kind: "small",
        title: `Kept in ${file ?? "the presets file"}; minigpt generate --preset NAME uses it too` }));
  }
}

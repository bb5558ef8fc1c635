// Show all settings as a form, made from the config's own JSON Schema; only settings that are not the default are sent.
/* global el */
import { ask } from "./api.js";
import { button, during, sentence } from "./words.js";

export class Form {
  // changed: called after each change, with the settings as {"train.max_steps": "10"}
  constructor(changed) {
    this.changed = changed;
    this.rows = new Map();
    this.box = el("div", { class: "form" });
  }

  async build() {
    const status = el("p", { class: "status", role: "status" });
    this.box.replaceChildren(status);
    const found = await during(status, "Reading the settings …", () => ask("/api/form"));
    if (!found) return;
    this.find = el("input", { type: "search", placeholder: "Find a setting: dropout, rate, checkpoint …",
      "aria-label": "Find a setting", autocomplete: "off", spellcheck: false });
    this.find.addEventListener("input", () => this.filter());
    this.only = el("input", { type: "checkbox", onchange: () => this.filter() });
    this.none = el("p", { class: "note", hidden: true }, "No setting has this name; clear the field to see all.");
    this.groups = Object.entries(found.sections).map(([section, { description, properties }]) => {
      const rows = Object.entries(properties).map(([name, schema]) => this.row(`${section}.${name}`, schema));
      const mistake = el("p", { class: "wrong", role: "alert" });
      return { section, mistake, box: el("fieldset", {}, el("legend", {}, section),
        el("p", { class: "note" }, description), mistake, ...rows) };
    });
    this.box.replaceChildren(el("div", { class: "row" }, this.find,
      el("label", { class: "check" }, this.only, "only what I changed"),
      button("Back to the defaults", () => this.reset(), { kind: "small" })),
    this.none, el("div", { class: "form-groups" }, ...this.groups.map((group) => group.box)));
  }

  row(name, schema) {
    const kind = kindOf(schema), field = fieldOf(kind);
    const id = field.id = `set.${name}`, help = `${id}.help`;
    field.setAttribute("aria-describedby", help);
    const mistake = el("p", { class: "wrong", role: "alert" });
    const plain = name.replaceAll("_", " "), words = `${name} ${plain} ${schema.description}`.toLowerCase();
    const box = el("div", { class: "form-row" }, el("label", { for: id }, plain.split(".")[1]), field,
      el("p", { class: "note", id: help }, schema.description), mistake);
    field.addEventListener("change", () => {
      box.classList.toggle("changed", this.value(row) !== null);
      this.changed(this.values);
    });
    const row = { name, kind, field, box, mistake, words };
    this.rows.set(name, row);
    return box;
  }

  // The value as it is written after a flag; null if it is the default
  value({ kind, field }) {
    const written = kind.many ? field.value.split("\n").filter(Boolean) : field.value;
    if (kind.many) return JSON.stringify(written) === JSON.stringify(kind.start) ? null : JSON.stringify(written);
    return written === kind.start ? null : written;
  }

  get values() {
    return Object.fromEntries([...this.rows.values()].map((row) => [row.name, this.value(row)])
      .filter(([, value]) => value !== null));
  }

  reset() {
    for (const { kind, field, box } of this.rows.values()) {
      field.value = kind.many ? kind.start.join("\n") : kind.start;
      box.classList.remove("changed");
    }
    this.changed({});
    this.filter();
  }

  filter() {
    const wanted = this.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { box, words } of this.rows.values()) {
      box.hidden = !wanted.every((word) => words.includes(word)) || (this.only.checked && !box.matches(".changed"));
    }
    for (const { box } of this.groups) box.hidden = !box.querySelector(".form-row:not([hidden])");
    this.none.hidden = this.groups.some(({ box }) => !box.hidden);
  }

  // Show the command's messages next to their fields; returns those that belong to no field of the form
  complain(lines) {
    for (const { mistake } of [...this.rows.values(), ...this.groups ?? []]) mistake.textContent = "";
    return lines.filter((line) => {
      const [, name, rest] = line.match(/^(?:--)?([\w.-]+): ?(.*)$/s) ?? [null, "", line];
      const plain = name.replaceAll("-", "_").toLowerCase(), changed = Object.keys(this.values);
      // a message about two settings names their section: show it at the one that was changed
      const meant = changed.find((each) => each.startsWith(`${plain}.`) && rest.includes(each.split(".")[1]));
      const place = this.rows.get(meant ?? plain) ?? this.groups?.find(({ section }) => section === plain);
      if (!place) return true;
      place.mistake.textContent = sentence(rest);
      place.box.hidden = false;
      place.box.closest("fieldset").hidden = false;
      place.box.scrollIntoView({ block: "nearest" });
      return false;
    });
  }
}

// How to ask for a field of the schema: `start` is its default as text
function kindOf(schema) {
  const kinds = schema.anyOf ?? [schema], number = kinds.find((each) => /integer|number/.test(each.type));
  const choices = schema.type === "boolean" ? ["false", "true"] : schema.enum;
  const many = schema.type === "array", words = kinds.find((each) => each.const)?.const;
  const empty = schema.default === null || schema.default === undefined;
  const start = many ? schema.default : empty ? "" : String(schema.default);
  return { number: words ? null : number, choices, many, start, words, text: schema.type === "string" && !schema.enum,
    options: schema.items?.enum };
}

function fieldOf({ number, choices, many, start, words, text, options }) {
  if (choices) {
    const made = el("select", {}, ...choices.map((each) => el("option", { value: each }, each)));
    made.value = start;
    return made;
  }
  const hint = many ? ["one per line", ...options ?? []].join(", ") : words ? `a number, or ${words}` : "";
  if (many || text) {
    const made = el("textarea", { rows: 1, spellcheck: false, placeholder: hint || null });
    made.value = many ? start.join("\n") : start;
    return made;
  }
  const keys = number && (number.type === "integer" ? "numeric" : "decimal");
  const made = el("input", { type: "text", inputmode: keys ?? null, autocomplete: "off", spellcheck: false,
    placeholder: hint || (start === "" ? "not set" : null) });
  made.value = start;
  return made;
}

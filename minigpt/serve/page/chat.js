// Chat with a run that was tuned on chats. The messages are a tree: an edit or another answer starts a branch.
/* global el, composes */
import { ask, query, stream } from "./api.js";
import { Settings } from "./settings.js";
import { store } from "./storage.js";
import { button, code, during, empty, labelled, link } from "./words.js";
import { models, noModel } from "./notebook.js";

export const title = "Chat";
const KEPT = "minigpt-chat:";

export const forget = (run) => localStorage.removeItem(KEPT + run);

export async function show(panel, app) {
  if (!app.modelsOf(app.run).length) {
    panel.append(noModel(app.run));
    return () => null;
  }
  const view = new Chat(panel, app);
  await view.start();
  return () => {
    removeEventListener("storage", view.follow);
    view.stop?.abort();
  };
}

// A message with the messages that may follow it; `chosen` is the one shown
const message = (role, content) => ({ role, content, next: [], chosen: 0 });

class Chat {
  constructor(panel, app) {
    Object.assign(this, { panel, app, run: app.run, stop: null }); // app.run changes before this part is closed
    // Another tab went on with this chat: show it here too, since what this tab keeps next replaces it
    this.follow = ({ key, newValue }) => {
      if (key === KEPT + this.run && newValue && !this.stop) this.begin(this.recall());
    };
  }

  async start() {
    this.status = el("p", { class: "status", role: "status" });
    this.panel.append(this.status);
    const run = await during(this.status, "Reading the run …",
      () => ask(`/api/run?${query({ name: this.run })}`));
    if (!run) return;
    if (!run.chats) {
      this.panel.replaceChildren(empty("This run was not tuned on chats", "It continues texts; write with it in the ",
        link("notebook", this.run, "Notebook"), ", or teach it to answer: ",
        code(`minigpt finetune ${run.path} chats.jsonl`), "."));
      return;
    }
    this.settings = new Settings(run.generation);
    await this.settings.build();
    this.root = this.recall();
    this.build();
    this.draw();
  }

  build() {
    addEventListener("storage", this.follow);
    this.model = models(this.app, () => null);
    this.log = el("ol", { class: "messages", "aria-label": "Messages" });
    this.say = el("textarea", { rows: 2, placeholder: "Say something", "aria-label": "Your message" });
    this.say.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
      event.preventDefault();
      this.send();
    });
    this.go = button("Send", () => this.send(), { kind: "primary" });
    this.halt = button("Stop", () => this.stop?.abort(), { hidden: true });
    const file = el("input", { type: "file", accept: "application/json,.json", hidden: true });
    file.addEventListener("change", () => this.load(file));
    this.panel.onkeydown = (event) => { if (event.key === "Escape") this.stop?.abort(); };
    this.panel.replaceChildren(el("div", { class: "beside" }, el("div", { class: "stack" }, this.log, this.status,
      el("div", { class: "say" }, this.say, this.go, this.halt),
      el("div", { class: "row" },
        button("New chat", () => this.begin(message("root", "")), { kind: "small" }),
        button("Save", () => this.save(), { kind: "small" }),
        button("Load", () => file.click(), { kind: "small" }), file)),
    el("details", { class: "side", open: innerWidth > 900 }, el("summary", {}, "Settings"),
      labelled("Model", this.model), this.settings.box)));
  }

  recall() {
    try {
      return JSON.parse(localStorage.getItem(KEPT + this.run)) ?? message("root", "");
    } catch {
      return message("root", "");
    }
  }

  // Show another chat; an answer in the old one ends
  begin(root) {
    this.stop?.abort();
    this.root = root;
    this.draw();
  }

  keep() {
    if (store(KEPT + this.run, JSON.stringify(this.root))) return;
    this.status.className = "status wrong";
    this.status.textContent = "The chat does not fit into this browser's storage; Save writes it to a file.";
  }

  // The shown messages, each with the one before it
  get path() {
    const found = [];
    for (let at = this.root; at.next.length; at = at.next[at.chosen]) found.push([at.next[at.chosen], at]);
    return found;
  }

  draw() {
    const { path } = this;
    this.log.replaceChildren(...(path.length ? path.map(([each, before]) => this.item(each, before))
      : [el("li", { class: "empty" }, el("p", { class: "empty-title" }, "No messages yet"),
        el("p", {}, "Write below. Enter sends, Shift + Enter begins a new line."))]));
    this.log.lastElementChild?.scrollIntoView({ block: "nearest" });
    this.go.hidden = Boolean(this.stop);
    this.halt.hidden = !this.stop;
    if (!this.stop) this.keep();
  }

  item(each, before) {
    const text = el("p", {}, each.content);
    const all = before.next.length;
    const turn = (by, name) => button(by < 0 ? "‹" : "›", () => {
      before.chosen = (before.chosen + by + all) % all;
      this.draw();
    }, { "aria-label": name });
    const branches = all > 1 ? [el("span", { class: "branches" }, turn(-1, "The branch before"),
      `${before.chosen + 1} of ${all}`, turn(1, "The next branch"))] : [];
    const act = each.role === "user" ? button("Edit", () => this.edit(each, before, item), { kind: "quiet" })
      : before.role === "user" ? button("Answer again", () => this.answer(before), { kind: "quiet" }) : "";
    const item = el("li", { class: each.role }, el("span", { class: "hidden" }, `${each.role}: `), text,
      el("div", { class: "row tools" }, ...branches, this.stop ? "" : act));
    Object.defineProperty(each, "shown", { value: text, enumerable: false, writable: true, configurable: true });
    return item;
  }

  edit(each, before, item) {
    const field = el("textarea", { rows: 3, "aria-label": "The message" });
    field.value = each.content;
    item.replaceChildren(field, el("div", { class: "row" }, button("Send", () => {
      before.next.push(message("user", field.value));
      before.chosen = before.next.length - 1;
      this.answer(before.next[before.chosen]);
    }, { kind: "primary small" }), button("Cancel", () => this.draw(), { kind: "small" })));
    field.focus();
  }

  send() {
    const text = this.say.value.trim();
    if (!text || this.stop) return;
    const last = this.path.at(-1)?.[0] ?? this.root, mine = message("user", text);
    last.chosen = last.next.push(mine) - 1;
    this.say.value = "";
    this.answer(mine);
  }

  // Ask for another answer to a message
  async answer(to) {
    if (this.stop) return;
    const asked = [];
    for (const [each] of this.path) {
      asked.push({ role: each.role, content: each.content });
      if (each === to) break;
    }
    this.keep(); // without the answer, which a reload would leave empty
    const mine = message("assistant", "");
    to.chosen = to.next.push(mine) - 1;
    this.stop = new AbortController();
    this.draw();
    await during(this.status, "Answering …", async () => {
      const request = { ...this.settings.request, model: this.model.value, messages: asked };
      for await (const piece of stream("/v1/chat/completions", request, this.stop.signal)) {
        mine.content += piece.choices[0]?.delta?.content ?? "";
        mine.shown.textContent = mine.content;
      }
    });
    this.stop = null;
    if (!mine.content) {
      to.next.pop();
      to.chosen = Math.max(0, to.next.length - 1);
    }
    this.draw();
    this.say.focus();
  }

  // The form of `minigpt chat` and /save, plus the branches
  save() {
    const { max_new_tokens: most, seed, ...rest } = this.settings.values;
    const settings = { ...this.settings.own, ...rest, max_new_tokens: most, ...(seed === null ? {} : { seed }) };
    const messages = this.path.map(([each]) => ({ role: each.role, content: each.content }));
    const answers = messages.filter((each) => each.role === "assistant").length;
    const saved = { format: 1, run: this.run, messages, settings, answers, branches: this.root };
    const file = new Blob([`${JSON.stringify(saved, null, 2)}\n`], { type: "application/json" });
    const address = URL.createObjectURL(file);
    el("a", { href: address, download: `${this.run.replaceAll("/", "-")}-chat.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  async load(file) {
    await during(this.status, "Reading …", async () => {
      const saved = JSON.parse(await file.files[0].text());
      if (saved.format !== 1 || !Array.isArray(saved.messages)) throw new Error("this file is not a saved chat");
      const whole = (each) => ["user", "assistant", "system"].includes(each?.role) && typeof each.content === "string";
      const read = (each) => ({ ...message(each.role, each.content), next: each.next.filter(whole).map(read),
        chosen: Math.min(Math.max(0, each.chosen | 0), Math.max(0, each.next.length - 1)) });
      if (saved.branches?.next) {
        this.begin(read({ ...saved.branches, role: "root", content: "" }));
        return;
      }
      const root = message("root", "");
      let last = root;
      for (const each of saved.messages.filter(whole)) {
        last.next.push(message(each.role, each.content));
        [last] = last.next;
      }
      this.begin(root);
    });
    file.value = "";
  }
}

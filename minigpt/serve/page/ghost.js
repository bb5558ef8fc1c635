// Suggest what the model would write next, in grey behind the caret of a text area; Tab takes a word, Escape hides it.
/* global el */

export class Ghost {
  // suggest: (text, signal) -> a promise of a text; taken: called when a word was taken
  constructor(area, suggest, taken) {
    Object.assign(this, { area, suggest, taken, rest: "", on: false });
    this.before = el("span", {});
    this.grey = el("span", { class: "ghost" });
    this.mirror = el("div", { class: "mirror", "aria-hidden": "true" }, this.before, this.grey);
    this.box = el("div", { class: "ghosted" }, this.mirror, area);
    area.addEventListener("input", (event) => this.typed(event.isComposing));
    area.addEventListener("compositionend", () => this.typed(false));
    area.addEventListener("keydown", (event) => this.key(event));
    area.addEventListener("scroll", () => { this.mirror.scrollTop = area.scrollTop; });
    const moved = () => { if (!this.atEnd()) this.clear(); };
    for (const kind of ["pointerup", "keyup", "blur"]) area.addEventListener(kind, moved);
  }

  atEnd() {
    const { area } = this, end = area.value.length;
    return document.activeElement === area && area.selectionStart === end && area.selectionEnd === end;
  }

  clear() {
    clearTimeout(this.timer);
    this.stop?.abort();
    this.rest = "";
    this.paint();
  }

  // If the typed letter is the predicted one, the rest of the suggestion stays. Nothing is suggested while an input
  // method (for Chinese, Japanese, Korean) composes a word
  typed(composing) {
    const [first] = this.rest;
    if (first && this.area.value === this.before.textContent + first && this.atEnd()) {
      this.rest = this.rest.slice(first.length);
      this.paint();
      if (this.rest) return;
    }
    this.clear();
    if (this.on && !composing) this.timer = setTimeout(() => this.fetch(), 500);
  }

  async fetch() {
    if (!this.on || !this.atEnd() || !this.area.value) return;
    const stop = (this.stop = new AbortController()), { value } = this.area;
    const found = await this.suggest(value, stop.signal).catch(() => "");
    if (stop.signal.aborted || this.area.value !== value || !this.atEnd()) return;
    this.rest = found;
    this.paint();
  }

  key(event) {
    if (!this.rest || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Tab" && !event.shiftKey) {
      event.preventDefault();
      const word = /^\s*\S+/.exec(this.rest)?.[0] ?? this.rest;
      this.taken();
      this.area.value += word;
      this.area.selectionStart = this.area.value.length;
      this.rest = this.rest.slice(word.length);
      this.paint();
      this.area.dispatchEvent(new Event("change"));
      if (!this.rest.trim()) this.timer = setTimeout(() => this.fetch(), 100);
    } else if (event.key === "Escape") {
      event.stopPropagation();
      this.clear();
    }
  }

  paint() {
    this.before.textContent = this.area.value;
    this.grey.textContent = this.rest;
    this.mirror.scrollTop = this.area.scrollTop;
    this.area.setAttribute("aria-description", this.rest ? `Suggested: ${this.rest}. Tab takes a word.` : "");
  }
}

"use strict";
// Turn text into ids and back, as minigpt/tokenizers/ does. Bytes are held in a "binary" string: one character per
// byte.

const LONE = /\p{Cs}/gu; // half of a character beyond the first 65,536

// The white space that words.py splits at
const SPACES = /[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const wordsOf = (text) => text.replace(LONE, "\ufffd").replaceAll("\n", " <eos> ").split(SPACES).filter(Boolean);

// The cleaning of the training text, in its order (data/clean.py)
const CLEANING = {
  ascii: (text) => text.replace(/[^\x00-\x7f]/g, ""),
  nfc: (text) => text.normalize("NFC"),
  lower: (text) => text.toLowerCase(),
  newlines: (text) => text.replace(/\r\n?/g, "\n"),
};
const cleanText = (text, steps) => steps.reduce((cleaned, step) => CLEANING[step](cleaned), text.replace(LONE, "\ufffd"));

function toBytes(text) {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return binary;
}

const fromBytes = (binary) => Uint8Array.from(binary, (char) => char.charCodeAt(0));

// GPT-2's visible spelling of bytes: printable ones stay as they are, the others become U+0100 and so on, in order
function spelling() {
  const table = new Map();
  for (let byte = 0, others = 0; byte < 256; byte++) {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    table.set(String.fromCharCode(printable ? byte : 256 + others++), String.fromCharCode(byte));
  }
  return table;
}

class Tokenizer {
  // `data`: { kind, size, special, added, pieces, pattern, nfc, unknown }, see tokenizer_data in pack.py
  constructor(data) {
    Object.assign(this, data);
    this.eos = data.special["<|endoftext|>"] ?? null;
    this.unk = data.special["<|unk|>"] ?? null;
    this.pieces = new Array(data.size).fill(""); // id -> its bytes
    this.ids = new Map(); // bytes -> id; characters -> id in a char tokenizer
    if (data.kind === "char") {
      const first = data.size - [...data.pieces].length;
      [...data.pieces].forEach((char, at) => {
        this.pieces[first + at] = toBytes(char);
        this.ids.set(char, first + at);
      });
    } else if (data.kind === "word") {
      data.pieces.split(" ").forEach((word, id) => {
        this.pieces[id] = word === "<eos>" ? " \n" : toBytes(` ${word}`);
        this.ids.set(word, id);
      });
      this.unk = this.ids.get("<unk>");
    } else if (data.kind === "byte") {
      for (let byte = 0; byte < 256; byte++) this.pieces[byte] = String.fromCharCode(byte);
    } else {
      const table = spelling();
      data.pieces.split(" ").forEach((word, id) => {
        const bytes = Array.from(word, (char) => table.get(char)).join("");
        this.pieces[id] = bytes;
        if (bytes) this.ids.set(bytes, id);
      });
      this.split = new RegExp(data.pattern, "gu");
      this.known = new Map(); // ids of words that were encoded before
    }
    this.named = new Map(Object.entries(data.added));
    for (const [name, id] of this.named) this.pieces[id] = toBytes(name);
    this.unit = data.kind === "word" ? "word" : "character";
    this.names = new Map(Object.entries(data.special).map(([name, id]) => [id, name]));
    const longest = [...this.named.keys()].sort((a, b) => b.length - a.length);
    this.parts = longest.length
      ? new RegExp(`(${longest.map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|")})`, "u") : null;
  }

  encode(text) {
    const parts = this.parts ? text.split(this.parts) : [text]; // every second part is an added token
    return parts.flatMap((part, at) => (at % 2 ? [this.named.get(part)] : this.encodePart(part)));
  }

  encodePart(text) {
    text = text.replace(LONE, "\ufffd");
    if (this.kind === "byte") return Array.from(new TextEncoder().encode(text));
    if (this.kind === "char") {
      return Array.from(text, (char) => {
        const id = this.ids.get(char) ?? this.unk;
        if (id === null) throw new Error(`The model does not know the character "${char}"; leave it out.`);
        return id;
      });
    }
    if (this.kind === "word") return wordsOf(text).map((word) => this.ids.get(word) ?? this.unk);
    if (this.nfc) text = text.normalize("NFC");
    const ids = [];
    let end = 0;
    for (const match of text.matchAll(this.split)) {
      if (match.index > end) this.merge(text.slice(end, match.index), ids);
      this.merge(match[0], ids);
      end = match.index + match[0].length;
    }
    if (end < text.length) this.merge(text.slice(end), ids);
    return ids;
  }

  // Byte-pair encoding of one word: join the neighbours whose joined bytes have the lowest id, until no pair has one
  merge(word, out) {
    const known = this.known.get(word);
    if (known) {
      for (const id of known) out.push(id);
      return;
    }
    const parts = [...toBytes(word)];
    const rank = (at) => this.ids.get(parts[at] + parts[at + 1]) ?? Infinity;
    const ranks = parts.slice(1).map((_, at) => rank(at));
    for (;;) {
      let best = -1, least = Infinity;
      for (let at = 0; at < ranks.length; at++) if (ranks[at] < least) [best, least] = [at, ranks[at]];
      if (best < 0) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      if (best < ranks.length) ranks[best] = rank(best);
      if (best > 0) ranks[best - 1] = rank(best - 1);
    }
    const ids = parts.map((part) => this.ids.get(part));
    if (word.length < 50 && this.known.size < 50000) this.known.set(word, ids);
    for (const id of ids) out.push(id);
  }

  // Bytes to show for a token: special tokens are left out, except one for unknown characters
  shown(id) {
    if (!this.names.has(id)) return this.pieces[id];
    return id === this.unk ? "\xef\xbf\xbd" : "";
  }

  decode(ids) {
    return new TextStream(this).take(ids);
  }

  // A part of a text with the white space that decoding writes (words.py)
  respaced(text) {
    if (this.kind !== "word") return text;
    return text.replace(new RegExp(SPACES, "g"), (gap, at) => {
      const lines = " \n".repeat(gap.split("\n").length - 1);
      return lines && at + gap.length === text.length ? lines : `${lines} `;
    });
  }

  // A token alone: a special one by its name, part of a character or a control character as <e2 82>
  label(id) {
    if (this.names.has(id)) return this.names.get(id);
    const bytes = fromBytes(this.pieces[id]);
    const hex = `<${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ")}>`;
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return hex;
    }
    return [...text].length === 1 && /\p{C}/u.test(text) && !/[\t-\r\x1c-\x1f\x85]/.test(text) ? hex : text;
  }

  // Characters or words of a text that the model never saw
  unknown(text) {
    if (this.kind === "word") return [...new Set(wordsOf(text))].filter((word) => !this.ids.has(word));
    if (this.kind !== "char") return [];
    return [...new Set(text.replace(LONE, "\ufffd"))].filter((char) => !this.ids.has(char));
  }
}

// Takes ids one by one, gives text as soon as its characters are complete
class TextStream {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  push(id) {
    return this.decoder.decode(fromBytes(this.tokenizer.shown(id)), { stream: true });
  }

  flush() {
    return this.decoder.decode();
  }

  take(ids) {
    return ids.map((id) => this.push(id)).join("") + this.flush();
  }
}

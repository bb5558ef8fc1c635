"use strict";
// Turn logits into a token, as minigpt/generation/sampling/ does, in the same order and with the same random numbers: a
// seed gives the same text here as in `minigpt generate --seed`.

// torch's generator on a CPU: MT19937 (Matsumoto and Nishimura, 1998); a float uses 24 of its bits
class Random {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.at = 624;
  }

  next() {
    const { state } = this;
    if (this.at === 624) {
      for (let i = 0; i < 624; i++) {
        const mixed = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let value = state[this.at++];
    value ^= value >>> 11;
    value ^= (value << 7) & 0x9d2c5680;
    value ^= (value << 15) & 0xefc60000;
    value ^= value >>> 18;
    return (value & 0xffffff) / 0x1000000;
  }
}

// Ban or penalise tokens. `ids`: all tokens so far, prompt first; `fresh`: how many of them were generated
function adjust(logits, ids, fresh, settings, rules) {
  const seen = new Set(ids), counts = new Map();
  for (const id of ids.slice(ids.length - fresh)) counts.set(id, (counts.get(id) || 0) + 1);
  for (const [id, value] of rules.bias) logits[id] += value;
  if (settings.repetition_penalty !== 1) for (const id of seen) {
    logits[id] = logits[id] < 0 ? logits[id] * settings.repetition_penalty : logits[id] / settings.repetition_penalty;
  }
  for (const [id, count] of counts) logits[id] -= settings.frequency_penalty * count + settings.presence_penalty;
  const size = settings.no_repeat_ngram_size;
  if (size) for (let start = 0; start + size <= ids.length; start++) {
    let again = true;
    for (let i = 0; again && i < size - 1; i++) again = ids[start + i] === ids[ids.length - size + 1 + i];
    if (again) logits[ids[start + size - 1]] = -Infinity;
  }
  for (const word of rules.bad_words) {
    const tail = word.slice(0, -1), from = ids.length - tail.length;
    if (from >= 0 && tail.every((id, i) => ids[from + i] === id)) logits[word.at(-1)] = -Infinity;
  }
  if (fresh < settings.min_new_tokens && rules.eos_id !== null) logits[rules.eos_id] = -Infinity;
  const largest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  if (largest === -Infinity) throw new Error("No token is left to write: together the settings ban all tokens.");
  if (!Number.isFinite(largest)) throw new Error("The model's logits are NaN or infinite: its weights are damaged.");
}

function softmax(logits) {
  const largest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  const out = logits.map((value) => Math.exp(value - largest));
  const total = out.reduce((sum, value) => sum + value, 0);
  return out.map((value) => value / total);
}

const argmax = (values) => values.reduce((best, value, at) => (value > values[best] ? at : best), 0);

// Keep the first tokens of an order until their probabilities sum to p
function keepFirst(logits, order, chances, p) {
  let before = 0;
  for (const id of order) {
    if (before >= Math.max(p, 1e-30)) logits[id] = -Infinity;
    before += chances[id];
  }
}

// The distribution to draw from; the temperature is not 0
function probabilities(logits, settings) {
  const { top_k: k, top_p, min_p, typical_p } = settings, largest = logits[argmax(logits)];
  const scaled = logits.map((value) => (value - largest) / Math.max(settings.temperature, 1e-30));
  const ids = () => Array.from(scaled.keys());
  if (k && k < scaled.length) {
    const smallest = scaled.slice().sort()[scaled.length - k];
    scaled.forEach((value, id) => { if (value < smallest) scaled[id] = -Infinity; });
  }
  if (top_p < 1) keepFirst(scaled, ids().sort((a, b) => scaled[b] - scaled[a] || a - b), softmax(scaled), top_p);
  if (min_p) {
    const least = Math.log(min_p);
    scaled.forEach((value, id) => { if (value < least) scaled[id] = -Infinity; });
  }
  if (typical_p < 1) {
    const chances = softmax(scaled);
    const average = chances.reduce((sum, chance) => sum - (chance ? chance * Math.log(chance) : 0), 0);
    const away = chances.map((chance) => Math.abs(-Math.log(chance) - average));
    keepFirst(scaled, ids().sort((a, b) => (away[a] === away[b] ? a - b : away[a] - away[b])), chances, typical_p);
  }
  return softmax(scaled);
}

function choose(logits, ids, fresh, settings, rules, random) {
  adjust(logits, ids, fresh, settings, rules);
  if (settings.temperature === 0) return argmax(logits);
  const chances = probabilities(logits, settings);
  const point = chances.reduce((sum, chance) => sum + chance, 0) * random.next();
  let sum = 0;
  const found = chances.findIndex((chance) => { sum += chance; return sum > point; });
  return found < 0 ? chances.length - 1 : found;
}

// Pass text on until a stop text is complete; text that may still become a stop text is held back
class Stops {
  constructor(stops) {
    this.stops = stops;
    this.held = "";
    this.hit = false;
  }

  push(text) {
    if (this.hit) return "";
    this.held += text;
    const places = this.stops.map((stop) => this.held.indexOf(stop)).filter((at) => at >= 0);
    this.hit = places.length > 0;
    return this.release(this.hit ? Math.min(...places) : this.begun());
  }

  // Where a stop text may have begun
  begun() {
    const longest = Math.max(0, ...this.stops.map((stop) => stop.length - 1));
    for (let at = Math.max(0, this.held.length - longest); at < this.held.length; at++) {
      if (this.stops.some((stop) => stop.startsWith(this.held.slice(at)))) return at;
    }
    return this.held.length;
  }

  flush() {
    return this.hit ? "" : this.release(this.held.length);
  }

  release(count) {
    const shown = this.held.slice(0, count);
    this.held = this.held.slice(count);
    return shown;
  }
}

// Continue the prompt (ids). A generator: it yields null while it reads, then { id, text } for each token; it returns
// why it ended: eos, stop, length or time.
function* write(model, tokenizer, prompt, settings, rules) {
  if (!prompt.length) throw new Error("The text is empty. Type some text first.");
  const random = new Random(settings.seed), stream = new TextStream(tokenizer);
  const stops = new Stops(settings.stop.map((text) => tokenizer.respaced(text)));
  const ids = prompt.slice(-model.config.max_seq_len);
  const end = settings.max_seconds ? performance.now() + 1000 * settings.max_seconds : Infinity;
  let reason = "length";
  for (let fresh = 0; fresh < settings.max_new_tokens && reason === "length"; fresh++) {
    const reading = model.read(ids);
    let step = reading.next();
    for (; !step.done; step = reading.next()) yield null;
    const id = choose(step.value, ids, fresh, settings, rules, random);
    ids.push(id);
    if (id === tokenizer.eos && settings.stop_at_eos) {
      reason = "eos";
      yield { id, text: "" };
    } else {
      yield { id, text: stops.push(stream.push(id)) };
      if (stops.hit) reason = "stop";
      else if (performance.now() >= end) reason = "time";
    }
  }
  const rest = stops.push(stream.flush()) + stops.flush();
  if (rest) yield { id: null, text: rest };
  return reason;
}

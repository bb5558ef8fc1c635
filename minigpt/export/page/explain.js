"use strict";
// Record what `minigpt explain` shows of a text (docs/explain.md), token by token: when a text gets longer, only its
// new tokens are computed.

const TOP = 10; // how many of the likeliest tokens are kept

const lengthOf = (vector) => Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));

class Explainer {
  constructor(model, tokenizer) {
    Object.assign(this, { model, tokenizer, tokens: [] });
  }

  // Switch off the heads in the set, given as layer * H + head
  switchOff(off) {
    const { model } = this;
    if (off.length === model.off.size && off.every((head) => model.off.has(head))) return;
    model.off = new Set(off);
    this.forget();
  }

  forget() {
    this.tokens = [];
    this.model.forget();
  }

  // Read a text's ids. A generator: it yields after each token.
  *read(ids, off) {
    this.switchOff(off);
    let same = this.model.keep(ids);
    same = Math.min(same, this.tokens.length);
    this.model.ids.length = this.tokens.length = same;
    for (const id of ids.slice(same)) {
      this.tokens.push(this.record(id));
      yield;
    }
  }

  record(id) {
    const { model } = this, { num_layers: L, num_heads: H, embed_dim: C } = model.config;
    const one = { id, stream: [], written: [], normed: [], attention: new Array(L * H), entropy: new Float32Array(L * H),
      back: new Float32Array(L * H) };
    const before = new Float32Array(C);
    model.step(id, {
      part(p, x) {
        one.stream.push(lengthOf(x));
        one.written.push(lengthOf(x.map((value, i) => value - before[i])));
        before.set(x);
        if (p % 2) return;
        const normed = new Float32Array(C);
        model.norm(model.last, x, normed);
        one.normed.push(normed);
      },
      looked(layer, head, weights, length) {
        const at = layer * H + head, row = new Uint8Array(length);
        for (let s = 0; s < length; s++) {
          const weight = weights[s];
          row[s] = Math.round(255 * weight);
          if (weight > 0) one.entropy[at] -= weight * Math.log(weight);
          one.back[at] += weight * (length - 1 - s);
        }
        one.attention[at] = row;
      },
    });
    one.lens = one.normed.map((normed) => this.predict(normed));
    return one;
  }

  // What the network would predict if it ended here
  predict(normed) {
    const logits = this.model.logits(normed);
    let largest = -Infinity, total = 0, entropy = 0;
    for (const value of logits) if (value > largest) largest = value;
    for (const value of logits) total += Math.exp(value - largest);
    const all = largest + Math.log(total);
    for (const value of logits) entropy += Math.exp(value - all) * (all - value);
    const ids = []; // the likeliest, by insertion: they are few compared with the vocabulary
    for (let id = 0; id < logits.length; id++) {
      if (ids.length === TOP && logits[id] <= logits[ids[TOP - 1]]) continue;
      let place = Math.min(ids.length, TOP - 1);
      while (place > 0 && logits[ids[place - 1]] < logits[id]) {
        ids[place] = ids[place - 1];
        place--;
      }
      ids[place] = id;
    }
    return { ids, probs: ids.map((id) => Math.exp(logits[id] - all)), all, entropy };
  }

  // Nats of surprise at the next token after each layer: its logit is one row of the head times the normalised stream
  losses(one, next) {
    const { data, scale, columns, stride } = this.model.head;
    return one.lens.map(({ all }, layer) => {
      let logit = 0;
      for (let i = 0; i < columns; i++) logit += data[next * stride + i] * one.normed[layer][i];
      return all - logit * (scale ? scale[next] : 1);
    });
  }

  // The same object as that of `explain`, with attention as bytes
  describe(about) {
    const { tokens, tokenizer, model } = this, { num_layers: L, num_heads: H } = model.config, T = tokens.length;
    const losses = tokens.slice(1).map((one, t) => this.losses(tokens[t], one.id));
    const lens = Array.from({ length: L + 1 }, (_, layer) => layer);
    const heads = (key) => Array.from({ length: L }, (_, layer) => Array.from({ length: H }, (_, head) => tokens.map(
      (one) => one[key][layer * H + head])));
    const shown = new Set(tokens.flatMap((one) => [one.id, ...one.lens.flatMap(({ ids }) => ids)]));
    const attention = new Uint8Array((L * H * T * (T + 1)) / 2);
    for (let at = 0, from = 0; at < L * H; at++) for (const one of tokens) {
      attention.set(one.attention[at], from);
      from += one.attention[at].length;
    }
    return {
      run: about.name, step: about.step, model: about.model, heads: about.heads, attention,
      ids: tokens.map(({ id }) => id), texts: tokens.map(({ id }) => tokenizer.label(id)),
      loss: [null, ...losses.map((row) => row.at(-1))], entropy: tokens.map((one) => one.lens.at(-1).entropy),
      attention_entropy: heads("entropy"),
      look_back: heads("back").map((layer) => layer.map((row) => row.reduce((sum, value) => sum + value, 0) / T)),
      parts: ["embedding", ...Array.from({ length: 2 * L }, (_, p) => `${p % 2 ? "feed-forward" : "attention"} ${p >> 1}`)],
      stream_norm: tokens[0].stream.map((_, p) => tokens.map((one) => one.stream[p])),
      written_norm: tokens[0].written.map((_, p) => tokens.map((one) => one.written[p])),
      lens: {
        ids: lens.map((layer) => tokens.map((one) => one.lens[layer].ids)),
        probs: lens.map((layer) => tokens.map((one) => one.lens[layer].probs)),
        loss: lens.map((layer) => [null, ...losses.map((row) => row[layer])]),
        entropy: lens.map((layer) => tokens.map((one) => one.lens[layer].entropy)),
      },
      vocabulary: Object.fromEntries([...shown].map((id) => [id, tokenizer.label(id)])),
    };
  }
}

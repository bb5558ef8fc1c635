"use strict";
// Run the model one token at a time: the same as minigpt/model/, as plain loops. Vectors hold fp32, sums are doubles. C
// is the width, H the heads, KV the key/value heads, D the size of a head.

// The first position that is still read after `length` tokens (generation/engine.py)
function windowStart(length, limit) {
  if (length <= limit) return 0;
  const hop = Math.max(1, Math.floor(limit / 2));
  return Math.ceil((length - limit) / hop) * hop;
}

// Abramowitz and Stegun, 7.1.26: exact to 1.5e-7
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const ACTIVATIONS = {
  gelu: (x) => (x / 2) * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(0, x),
  relu2: (x) => Math.max(0, x) ** 2,
  swiglu: (x) => x / (1 + Math.exp(-x)), // of the gate, the first half; the second half is multiplied by the result
};

const NORMS = {
  layernorm(x, from, size, weight, bias, eps, out, to) {
    let mean = 0, square = 0;
    for (let i = 0; i < size; i++) mean += x[from + i];
    mean /= size;
    for (let i = 0; i < size; i++) square += (x[from + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / size + eps);
    for (let i = 0; i < size; i++) out[to + i] = (x[from + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  },
  rmsnorm(x, from, size, weight, bias, eps, out, to) {
    let square = 0;
    for (let i = 0; i < size; i++) square += x[from + i] ** 2;
    const scale = 1 / Math.sqrt(square / size + eps);
    for (let i = 0; i < size; i++) out[to + i] = x[from + i] * scale * weight[i];
  },
};

// out = matrix x + bias. A matrix is { data [rows, stride], scale [rows] of int8 numbers or null, rows, columns, stride
// }, and if simd.js holds it, also { at, simd }.
function multiply(matrix, x, bias, out) {
  if (matrix.simd) {
    matrix.simd.multiply(matrix, x, bias, out);
    return;
  }
  const { data, scale, rows, columns, stride } = matrix, whole = columns - (columns % 4);
  for (let row = 0; row < rows; row++) {
    let a = 0, b = 0, c = 0, d = 0, k = 0, at = row * stride;
    for (; k < whole; k += 4, at += 4) { // four sums, so that no addition waits for the one before
      a += data[at] * x[k];
      b += data[at + 1] * x[k + 1];
      c += data[at + 2] * x[k + 2];
      d += data[at + 3] * x[k + 3];
    }
    for (; k < columns; k++, at++) a += data[at] * x[k];
    const sum = a + b + c + d;
    out[row] = (scale ? sum * scale[row] : sum) + (bias ? bias[row] : 0);
  }
}

// out += row `index` of a matrix
function addRow(matrix, index, out) {
  const { data, scale, columns, stride } = matrix, factor = scale ? scale[index] : 1;
  for (let i = 0; i < columns; i++) out[i] += data[index * stride + i] * factor;
}

class Model {
  // `tensors`: name in GPT's state_dict -> a matrix, or { data } for a vector
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    this.normalise = NORMS[config.norm];
    this.activate = ACTIVATIONS[config.activation];
    const { num_layers: L, max_seq_len: S, embed_dim: C, num_heads: H, kv_heads: KV, head_size: D } = config;
    this.blocks = Array.from({ length: L }, (_, layer) => {
      const of = (name) => tensors[`blocks.${layer}.${name}`];
      const vector = (name) => (of(name) ? of(name).data : null);
      return {
        ...Object.fromEntries(["attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"].map(
          (name) => [name.split(".")[1], { weight: of(`${name}.weight`), bias: vector(`${name}.bias`) }])),
        ...Object.fromEntries(["norm1", "norm2", "attention.q_norm", "attention.k_norm"].map(
          (name) => [name.split(".").at(-1), { weight: vector(`${name}.weight`), bias: vector(`${name}.bias`) }])),
        keys: new Float32Array(S * KV * D), // [S, KV, D]
        values: new Float32Array(S * KV * D),
      };
    });
    this.last = { weight: tensors["norm.weight"].data, bias: tensors["norm.bias"] ? tensors["norm.bias"].data : null };
    this.head = { ...(config.tie_embeddings ? tensors["embedding.weight"] : tensors["head.weight"]),
      rows: config.vocab_size };
    this.off = new Set(); // heads that are switched off, as layer * H + head
    this.forget();
    const inside = config.hidden_dim;
    this.room = { x: new Float32Array(C), normed: new Float32Array(C), added: new Float32Array(C),
      qkv: new Float32Array((H + 2 * KV) * D), mixed: new Float32Array(H * D), weights: new Float64Array(S),
      wide: new Float32Array(config.gates * inside), hidden: new Float32Array(inside) };
    this.makePositions();
  }

  // Tables of positions in fp32 at each step, as torch computes them
  makePositions() {
    const { position, max_seq_len: S, head_size: D, embed_dim: C, rope_theta: theta } = this.config;
    const round = Math.fround, half = D / 2;
    if (position === "rope") {
      this.cos = new Float32Array(S * half);
      this.sin = new Float32Array(S * half);
      for (let i = 0; i < half; i++) {
        const frequency = round(theta ** round((-2 * i) / D));
        for (let t = 0; t < S; t++) {
          this.cos[t * half + i] = Math.cos(round(t * frequency));
          this.sin[t * half + i] = Math.sin(round(t * frequency));
        }
      }
    } else if (position === "sinusoidal") {
      const table = new Float32Array(S * C);
      for (let i = 0; i < C; i += 2) {
        const frequency = round(Math.exp(round(i * round(-Math.log(10000) / C))));
        for (let t = 0; t < S; t++) {
          table[t * C + i] = Math.sin(round(t * frequency));
          table[t * C + i + 1] = Math.cos(round(t * frequency));
        }
      }
      this.positions = { data: table, scale: null, rows: S, columns: C, stride: C };
    } else {
      this.positions = this.tensors["positions.weight"];
    }
  }

  forget() {
    this.ids = []; // the ids whose keys and values the cache holds
  }

  norm({ weight, bias }, x, out) {
    this.normalise(x, 0, x.length, weight, bias, this.config.norm_eps, out, 0);
  }

  // Read one more token: returns the state that the head reads. `watch`, if given, sees what happens: part(p, x) gets
  // the stream after part p; looked(layer, head, weights, length)
  step(id, watch) {
    const { config, room } = this, { x, normed, added, wide, hidden } = room, t = this.ids.length;
    if (t >= config.max_seq_len) throw new Error(`${t + 1} positions, but max_seq_len is ${config.max_seq_len}`);
    x.fill(0);
    addRow(this.tensors["embedding.weight"], id, x);
    if (config.bigrams) {
      const before = t ? this.ids[t - 1] : config.vocab_size;
      addRow(this.tensors["bigrams.weight"], (before * config.vocab_size + id) % config.bigrams, x);
    }
    if (this.positions) addRow(this.positions, t, x);
    if (watch) watch.part(0, x);
    this.blocks.forEach((block, layer) => {
      this.norm(block.norm1, x, normed);
      this.attend(block, layer, t, watch);
      multiply(block.out.weight, room.mixed, block.out.bias, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      if (watch) watch.part(2 * layer + 1, x);
      this.norm(block.norm2, x, normed);
      multiply(block.up.weight, normed, block.up.bias, wide);
      const inside = hidden.length, gated = config.gates === 2;
      for (let i = 0; i < inside; i++) hidden[i] = this.activate(wide[i]) * (gated ? wide[inside + i] : 1);
      multiply(block.down.weight, hidden, block.down.bias, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      if (watch) watch.part(2 * layer + 2, x);
    });
    this.ids.push(id);
    this.norm(this.last, x, normed);
    return normed;
  }

  // Attention of position t: reads room.normed, writes room.mixed; its key and value are kept
  attend(block, layer, t, watch) {
    const { num_heads: H, kv_heads: KV, head_size: D, qk_norm: normed, norm_eps: eps, position } = this.config;
    const { qkv, mixed, weights } = this.room, { keys, values, q_norm: q, k_norm: k } = block;
    multiply(block.qkv.weight, this.room.normed, block.qkv.bias, qkv);
    for (let head = 0; head < H + KV; head++) {
      const { weight, bias } = head < H ? q : k;
      if (normed) this.normalise(qkv, head * D, D, weight, bias, eps, qkv, head * D);
      if (position === "rope") this.rotate(qkv, head * D, t);
    }
    keys.set(qkv.subarray(H * D, (H + KV) * D), t * KV * D);
    values.set(qkv.subarray((H + KV) * D), t * KV * D);
    mixed.fill(0);
    for (let head = 0; head < H; head++) {
      const from = head * D, group = Math.floor((head * KV) / H) * D, shrink = 1 / Math.sqrt(D);
      let largest = -Infinity, total = 0;
      for (let s = 0; s <= t; s++) {
        const at = s * KV * D + group;
        let product = 0;
        for (let i = 0; i < D; i++) product += qkv[from + i] * keys[at + i];
        weights[s] = product * shrink;
        if (weights[s] > largest) largest = weights[s];
      }
      for (let s = 0; s <= t; s++) total += weights[s] = Math.exp(weights[s] - largest);
      for (let s = 0; s <= t; s++) weights[s] /= total;
      if (watch) watch.looked(layer, head, weights, t + 1);
      if (this.off.has(layer * H + head)) continue;
      for (let s = 0; s <= t; s++) {
        const at = s * KV * D + group, weight = weights[s];
        for (let i = 0; i < D; i++) mixed[from + i] += weight * values[at + i];
      }
    }
  }

  // Rotary positions: rotate each pair (i, i + D/2)
  rotate(vector, from, t) {
    const half = this.config.head_size / 2;
    for (let i = 0; i < half; i++) {
      const cos = this.cos[t * half + i], sin = this.sin[t * half + i];
      const first = vector[from + i], second = vector[from + half + i];
      vector[from + i] = first * cos - second * sin;
      vector[from + half + i] = second * cos + first * sin;
    }
  }

  logits(hidden) {
    const out = new Float32Array(this.config.vocab_size);
    multiply(this.head, hidden, null, out);
    return out;
  }

  // How many of these tokens, from the first on, the cache already holds; it forgets the others
  keep(ids) {
    let same = 0;
    while (same < this.ids.length && same < ids.length && this.ids[same] === ids[same]) same++;
    this.ids.length = same;
    return same;
  }

  // Logits of the token after `ids`; only the window is read. A generator: it yields after each token that it reads.
  *read(ids) {
    const window = ids.slice(windowStart(ids.length, this.config.max_seq_len));
    this.keep(window.slice(0, -1));
    let hidden = null;
    for (let t = this.ids.length; t < window.length; t++) {
      hidden = this.step(window[t]);
      yield;
    }
    return this.logits(hidden);
  }
}

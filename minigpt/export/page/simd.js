"use strict";
// Multiply a matrix and a vector in WebAssembly, 16 numbers at a time; `multiply` in model.js is the readable form. All
// matrices are fp32 here, in one memory, and rows are padded with zeros to a multiple of 16 numbers.

const LANES = 16;
const padded = (columns) => Math.ceil(columns / LANES) * LANES;

// The bytes of: (weights, x, out, rows, row bytes) -> for each row, out = sum of row * x
function dotsModule() {
  const [weights, x, out, rows, bytes, at, end, sums] = [0, 1, 2, 3, 4, 5, 6, 7]; // the last one is the first of four
  const get = (local) => [0x20, local], set = (local) => [0x21, local], number = (n) => [0x41, ...(n < 64 ? [n] : [n | 128, 0])];
  const add = 0x6a, plus = (local, n) => [...get(local), ...number(n), add, ...set(local)];
  const load = (local, offset) => [...get(local), 0xfd, 0x00, 4, offset];
  const mulAdd = [0xfd, 0xe6, 1, 0xfd, 0xe4, 1], addLanes = [0xfd, 0xe4, 1], addFloats = 0x92;
  const zero = [0xfd, 0x0c, ...new Array(16).fill(0)], lane = (n) => [...get(sums), 0xfd, 0x1f, n];
  const loop = [0x03, 0x40], again = [0x0d, 0], close = 0x0b;
  const four = [0, 1, 2, 3];
  const body = [
    2, 2, 0x7f, 4, 0x7b, // locals: two integers, four vectors
    ...get(x), ...get(bytes), add, ...set(end),
    ...loop,
    ...four.flatMap((n) => [...zero, ...set(sums + n)]), ...get(x), ...set(at),
    ...loop,
    ...four.flatMap((n) => [...get(sums + n), ...load(weights, 16 * n), ...load(at, 16 * n), ...mulAdd, ...set(sums + n)]),
    ...plus(weights, 64), ...plus(at, 64), ...get(at), ...get(end), 0x49, ...again,
    close,
    ...get(sums), ...get(sums + 1), ...addLanes, ...get(sums + 2), ...get(sums + 3), ...addLanes, ...addLanes, ...set(sums),
    ...get(out), ...lane(0), ...lane(1), addFloats, ...lane(2), ...lane(3), addFloats, addFloats, 0x38, 2, 0,
    ...plus(out, 4), ...get(rows), ...number(1), 0x6b, 0x22, rows, ...again,
    close, close,
  ];
  const size = (n) => (n < 128 ? [n] : [(n & 127) | 128, n >> 7]), text = (name) => [name.length, ...toBytes(name)].map(
    (part) => (typeof part === "string" ? part.charCodeAt(0) : part));
  const section = (id, content) => [id, ...size(content.length), ...content];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, 5, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0]), // one type: five integers, no result
    ...section(2, [1, ...text("page"), ...text("memory"), 2, 0, 1]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...text("dots"), 0, 0]),
    ...section(10, [1, ...size(body.length), ...body]),
  ]);
}

// Memory for matrices, { rows, columns } each, and the product; null if the browser has no such instructions
function makeSimd(matrices) {
  const most = (key) => Math.max(...matrices.map((matrix) => padded(matrix[key])));
  const x = 0, out = 4 * most("columns"), first = out + 4 * most("rows");
  const total = matrices.reduce((sum, { rows, columns }) => sum + 4 * rows * padded(columns), first);
  let memory, dots;
  try {
    memory = new WebAssembly.Memory({ initial: Math.ceil(total / 65536) });
    dots = new WebAssembly.Instance(new WebAssembly.Module(dotsModule()), { page: { memory } }).exports.dots;
  } catch { // an older browser, or too little memory: model.js works without it
    return null;
  }
  const floats = new Float32Array(memory.buffer);
  let free = first;
  return {
    // The same matrix in this memory
    place({ data, scale, rows, columns }) {
      const stride = padded(columns), at = free, start = at / 4;
      free += 4 * rows * stride;
      for (let row = 0; row < rows; row++) {
        const factor = scale ? scale[row] : 1;
        for (let i = 0; i < columns; i++) floats[start + row * stride + i] = data[row * columns + i] * factor;
      }
      return { data: floats.subarray(start, start + rows * stride), scale: null, rows, columns, stride, at, simd: this };
    },

    multiply({ at, rows, stride }, vector, bias, result) {
      floats.set(vector, x / 4);
      floats.fill(0, x / 4 + vector.length, x / 4 + stride);
      dots(at, x, out, rows, 4 * stride);
      const from = out / 4;
      for (let row = 0; row < rows; row++) result[row] = floats[from + row] + (bias ? bias[row] : 0);
    },
  };
}

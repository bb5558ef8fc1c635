// Draw lines over steps in a chart, and draw them again when the box changes its width. Used for loss, rates and
// comparisons.
/* global el, svg */
import { plain } from "./words.js";

const LEFT = 48, RIGHT = 12, TOP = 16, BOTTOM = 40;
const NAME = 16; // height of the name of a level

// 3 to 6 round numbers between two values
function ticks(low, high, about) {
  const rough = (high - low) / Math.max(1, about), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough) || power;
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-6);
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

// Keep only the highest and lowest of the points in one pixel, since a run has many thousands of points
function thin(points, most) {
  if (points.length <= most) return points;
  const each = Math.ceil(points.length / (most / 2)), found = [];
  for (let at = 0; at < points.length; at += each) {
    const some = points.slice(at, at + each);
    const low = some.reduce((a, b) => (b[1] < a[1] ? b : a)), high = some.reduce((a, b) => (b[1] > a[1] ? b : a));
    found.push(...(low === high ? [low] : [low, high].sort((a, b) => a[0] - b[0])));
  }
  return found;
}

/* what: {
     about        description for screen readers
     series       [{ name, tone, points: [[x, y]], dots, band: [[x, low, high]] }]
     levels       [{ name, value }]  horizontal lines, drawn if they are in the visible range
     marks        [{ x, name }]      vertical lines
     height, format, x: name of the horizontal axis
     cursor       x of a line that a slider moves
     pick         called with the x that was clicked
   } */
export class Curve {
  constructor(box, what) {
    this.box = box;
    this.readout = el("p", { class: "curve-readout", "aria-live": "off" });
    this.frame = el("div", { class: "curve" });
    box.replaceChildren(this.frame, this.readout);
    this.watcher = new ResizeObserver(() => { if (this.frame.clientWidth !== this.width) this.draw(); });
    this.watcher.observe(this.frame);
    this.show(what);
  }

  show(what) {
    this.what = { height: 300, x: "step", series: [], levels: [], marks: [], format: plain, ...what };
    this.draw();
  }

  close() { this.watcher.disconnect(); }

  draw() {
    const { what } = this, width = this.frame.clientWidth;
    this.width = width;
    if (width < 80) return;
    const known = what.series.flatMap((each) => each.points);
    if (!known.length) {
      this.frame.replaceChildren();
      return;
    }
    const xs = known.map((point) => point[0]), right = most([...xs, ...what.marks.map((mark) => mark.x)]);
    const left = Math.min(0, xs.reduce((a, b) => Math.min(a, b)));
    const bands = what.series.flatMap((each) => each.band ?? []).flatMap(([, least, most]) => [least, most]);
    const [low, high] = this.range([...known.map((point) => point[1]), ...bands]);
    const X = (x) => LEFT + ((width - LEFT - RIGHT) * (x - left)) / (right - left || 1);
    const Y = (y) => TOP + (what.height - TOP - BOTTOM) * (1 - (y - low) / (high - low || 1));
    this.scale = { X, Y, left, right, low, high };
    const made = svg("svg", { width, height: what.height, role: "img", "aria-label": what.about });
    for (const value of ticks(low, high, what.height / 60)) {
      made.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: Y(value), y2: Y(value) }),
        svg("text", { x: LEFT - 8, y: Y(value) + 4, "text-anchor": "end" }, what.format(value)));
    }
    for (const value of ticks(left, right, width / 110)) {
      made.append(svg("text", { x: X(value), y: what.height - BOTTOM + 18, "text-anchor": "middle" }, plain(value)));
    }
    made.append(svg("text", { x: width - RIGHT, y: what.height - 1, "text-anchor": "end", class: "unit" }, what.x));
    const names = this.levels(made, X(right), Y);
    for (const { x, name } of what.marks) {
      made.append(svg("line", { class: "event", x1: X(x), x2: X(x), y1: TOP, y2: what.height - BOTTOM },
        svg("title", {}, name)));
    }
    for (const each of what.series) this.line(made, each, X, Y);
    made.append(...names);
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: what.height - BOTTOM, visibility: "hidden" });
    made.append(this.cursor);
    made.addEventListener("pointermove", (event) => { this.at(this.hover = this.from(event)); });
    made.addEventListener("pointerleave", () => { this.hover = null; this.at(what.cursor); });
    if (what.pick) {
      made.classList.add("picks");
      made.addEventListener("click", (event) => what.pick(this.from(event)));
    }
    this.frame.replaceChildren(made);
    this.at(this.hover ?? what.cursor); // the pointer may rest on a run that writes new lines
  }

  // The visible levels as lines, with their names: above the line if the curves ended below it, else below it
  levels(made, end, Y) {
    const { series } = this.what, { low, high } = this.scale;
    const last = Math.min(...series.map((each) => each.points.at(-1)?.[1] ?? Infinity));
    const seen = this.what.levels.filter(({ value }) => value >= low && value <= high)
      .sort((a, b) => a.value - b.value);
    let y;
    const put = (level, place) => {
      y = place;
      made.append(svg("line", { class: "level", x1: LEFT, x2: end, y1: Y(level.value), y2: Y(level.value) }));
      return svg("text", { class: "level-name", x: end, y, "text-anchor": "end" },
        `${level.name} ${level.value.toFixed(2)}`);
    };
    y = Infinity; // names are at least NAME apart, upwards and downwards
    const above = seen.filter(({ value }) => value > last)
      .map((each) => put(each, Math.min(Y(each.value) - 5, y - NAME)));
    y = -Infinity;
    const below = seen.filter(({ value }) => value <= last).reverse();
    return [...above, ...below.map((each) => put(each, Math.max(Y(each.value) + 14, y + NAME)))];
  }

  // The range of the values, with the levels just outside; one extreme value at the start must not flatten the rest
  range(ys) {
    const finite = ys.filter(Number.isFinite).sort((a, b) => a - b);
    let low = finite[0], high = finite[finite.length - 1];
    const upper = finite[Math.floor(finite.length * 0.98)];
    if (finite.length > 50 && high - low > 4 * (upper - low)) high = low + 1.15 * (upper - low);
    const span = high - low || Math.abs(high) || 1;
    for (const { value } of this.what.levels) {
      if (value < low && value > low - span) low = value;
      if (value > high && value < high + 0.3 * span) high = value;
    }
    if (this.what.zero) low = Math.min(0, low);
    const pad = 0.04 * (high - low || span);
    const room = this.what.levels.length ? 2 * pad : pad; // a name is below the lowest level
    return [this.what.zero && low === 0 ? 0 : low - room, high + pad];
  }

  line(made, each, X, Y) {
    const points = thin(each.points.filter((point) => Number.isFinite(point[1])), 1600);
    const top = TOP - 4;
    const place = ([x, y]) => `${X(x).toFixed(1)} ${Math.max(top, Y(y)).toFixed(1)}`;
    if (each.band?.length) {
      const edge = (index) => each.band.map((row) => place([row[0], row[index]]));
      made.append(svg("path", { class: `band ${each.tone}`, d: `M${[...edge(1), ...edge(2).reverse()].join("L")}Z` }));
    }
    if (points.length > 1) {
      made.append(svg("path", { class: `line ${each.tone}`, d: `M${points.map(place).join("L")}` }));
    }
    for (const [x, y] of each.dots || points.length === 1 ? points : []) {
      made.append(svg("circle", { class: `dot ${each.tone}`, cx: X(x), cy: Math.max(top, Y(y)), r: 3 }));
    }
  }

  from(event) {
    const { left, right } = this.scale, place = event.clientX - this.frame.getBoundingClientRect().left;
    return left + ((place - LEFT) / (this.width - LEFT - RIGHT)) * (right - left);
  }

  // The line of the cursor, and below the chart the values at its step
  at(x) {
    const { what, scale } = this;
    if (!scale || x === undefined || x === null) {
      this.cursor?.setAttribute("visibility", "hidden");
      this.readout.replaceChildren(...legend(what));
      return;
    }
    const near = what.series.map((each) => [each, nearest(each.points, x)]).filter(([, point]) => point);
    if (!near.length) return;
    const here = near.reduce((a, b) => (Math.abs(b[1][0] - x) < Math.abs(a[1][0] - x) ? b : a))[1][0];
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, scale.X(here));
    this.cursor.setAttribute("visibility", "visible");
    this.readout.replaceChildren(el("span", {},
      `${what.x} ${here.toLocaleString("en", { maximumFractionDigits: 2 })}`),
      ...near.map(([each, point]) => el("span", {}, el("span", { class: `key ${each.tone}` }), `${each.name} `,
        el("b", {}, what.format(point[1], true)), range(each, point[0], what))));
  }
}

// The range of a series' band at a step
function range(each, x, what) {
  const row = each.band?.find(([at]) => at === x);
  return row ? ` (${what.format(row[1], true)} to ${what.format(row[2], true)})` : "";
}

const legend = (what) => (what.series.length < 2 && !what.named ? [] : what.series.map((each) => el("span", {},
  el("span", { class: `key ${each.tone}` }), each.name)));

// Math.max(...values) fails for very many values
const most = (values) => values.reduce((a, b) => Math.max(a, b));

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  if (high < 0) return null;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  const before = points[low - 1];
  return before && x - before[0] < points[low][0] - x ? before : points[low];
}

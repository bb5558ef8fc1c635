"use strict";
// Draw an object of `explain` (docs/explain.md describes its keys) into the sections of a page. There is one state, the
// chosen token and head, and each picture is drawn from it. Texts of tokens only become text nodes, never HTML.
// `before`: the state of an earlier picture, to continue with. `switches`: { off, toggle }, to switch heads off.
function drawExplanation(data, before = null, switches = null) {
  const { model, texts, loss, entropy, lens, heads } = data;
  const T = texts.length, L = model.layers, H = model.heads;
  const guess = Math.log(model.vocabulary); // nats of a blind guess, drawn in full colour
  const attention = unpack(data.attention, T, H);
  const state = { token: 0, layer: 0, head: 0, pinned: false, ...before };
  const find = (id) => document.getElementById(id);
  const focused = ["grid", "detail"].find((id) => find(id).contains(document.activeElement)); // is drawn again below

  const known = loss.filter((value) => value !== null);
  const longest = Math.max(...texts.map((text) => visible(text).length));

  // --- surprise ---
  const spans = texts.map((text, t) => {
    const value = loss[t];
    const about = value === null ? "the first token, which is not predicted" : `${nats(value)} nats of surprise`;
    return el(
      "span",
      {
        class: `surprising${texts.some((each) => each.length > 1) ? " apart" : ""}`, role: "button", tabindex: "-1",
        style: { "--v": Math.min(1, (value || 0) / guess) }, title: `${t}: ${about}`,
        "aria-label": `${visible(text)}, position ${t}, ${about}`, onclick: () => choose(t), onfocus: () => choose(t),
      },
      ...text.split(/(?=\n)/).flatMap((part) => (part[0] === "\n"
        ? [el("span", { class: "space", "aria-hidden": "true" }, "↵"), part] : [part])),
    );
  });
  find("tokens").replaceChildren(...spans);
  roving(find("tokens"), spans, 10);
  find("surprise-legend").replaceChildren(
    "0 nats", el("span", { class: "ramp" }),
      `${guess.toFixed(1)} nats: a blind guess among ${model.vocabulary.toLocaleString("en")} tokens`,
    el("span", {}, el("span", { class: "swatch surprise" }), " surprise"),
    el("span", {}, el("span", { class: "tick" }), " expected"),
  );

  function lossChart() {
    const box = find("loss-chart"), top = 10, height = 130, left = 30;
    const step = Math.min(48, Math.max(12, (box.clientWidth - left) / T)), W = left + T * step;
    const level = step > 7.5 * longest || longest === 1;
    const under = level ? 24 : Math.min(80, 14 + 6.5 * longest); // space for the names below the bars
    const most = Math.max(1, ...known, ...entropy.slice(0, -1));
    const y = (value) => top + height * (1 - value / most);
    const chart = picture(W, top + height + under,
      `Surprise of each token in nats, ${known.length} bars, the highest ${nats(Math.max(0, ...known))}`);
    const every = most > 6 ? 2 : 1;
    for (let value = 0; value <= most; value += every) {
      chart.append(
        svg("line", { class: "axis", x1: left, x2: W, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)),
      );
    }
    texts.forEach((text, t) => {
      const x = left + t * step, wide = Math.max(1, step - Math.min(3, step / 4));
      const chosen = t === state.token;
      const column = svg("g", { style: { cursor: "pointer" }, onclick: () => choose(t) });
      column.append(svg("rect",
        { x, y: top, width: step, height: height + under, fill: chosen ? "var(--raised)" : "transparent" }));
      if (t > 0) {
        column.append(
          svg("rect", { x, y: y(loss[t]), width: wide, height: top + height - y(loss[t]), rx: 1.5,
            fill: "var(--surprise)" }),
          svg("line", { x1: x, x2: x + wide, y1: y(entropy[t - 1]), y2: y(entropy[t - 1]), stroke: "var(--ink)",
            "stroke-width": 1.6 }),
        );
      }
      const at = [x + wide / 2, top + height + 17];
      const turned = { "text-anchor": "end", transform: `translate(${at[0] + 3} ${at[1] - 6}) rotate(-65)` };
      column.append(svg("text", { class: chosen ? "name strong" : "name",
        ...(level ? { "text-anchor": "middle", x: at[0], y: at[1] } : turned) }, letters(visible(text), 0, 10)));
      const summary = t ? `${nats(loss[t])} nats, expected ${nats(entropy[t - 1])}` : "the first token is not predicted";
      column.append(svg("title", {}, `${t} ${visible(text)}: ${summary}`));
      chart.append(column);
    });
    box.replaceChildren(chart);
    edges(box);
  }

  // --- what comes next ---

  function nextBars() {
    const t = state.token, follows = data.ids[t + 1], last = lens.ids.length - 1;
    const rows = lens.ids[last][t].map((id, k) => [id, lens.probs[last][t][k]]);
    const most = rows[0][1];
    const box = el("div", { class: "next" });
    const add = (id, text, p) => box.append(
      token(text, id === follows ? "right" : ""),
      el("div", { class: "line" }, el("div", { class: "fill", style: { width: `${(70 * p) / most}%` } }), percent(p),
        id === follows ? el("small", {}, "follows in the text") : ""),
    );
    for (const [id, p] of rows) add(id, data.vocabulary[id], p);
    if (follows !== undefined && !rows.some(([id]) => id === follows)) add(follows, texts[t + 1],
      Math.exp(-loss[t + 1]));
    const doubt = `${entropy[t].toFixed(2)} nats of entropy, as for ${Math.exp(entropy[t]).toFixed(1)} equally likely`;
    const before = letters(texts.slice(Math.max(0, t - 24), t).join("").replaceAll("\n", "↵"), -32);
    find("next").replaceChildren(el("p", { class: "caption" }, "After ", el("b", { class: "text small" },
      `${t > 24 ? "…" : ""}${before}`, token(texts[t])), ` (up to token ${t}): ${doubt} tokens.`), box);
  }

  // --- attention ---

  const buttons = [], canvases = [];
  const isOff = (layer, head) => Boolean(switches) && switches.off.has(layer * H + head);
  const label = (layer, head) => {
    const kind = heads.named[layer][head];
    return kind ? KINDS[kind][0] : "";
  };
  find("grid").style.gridTemplateColumns = `2.2rem repeat(${H}, minmax(0, 9rem))`;
  find("grid").replaceChildren(el("span", {}),
    ...Array.from({ length: H }, (_, head) => el("span", { class: "column" }, `head ${head}`)));
  for (let layer = 0; layer < L; layer++) {
    find("grid").append(el("span", { class: "row" }, `layer ${layer}`));
    for (let head = 0; head < H; head++) {
      const canvas = el("canvas", { "aria-hidden": "true" });
      const show = () => state.pinned || look(layer, head);
      const button = el(
        "button",
        {
          type: "button", "aria-label": `Layer ${layer}, head ${head}${label(layer, head) && `, ${label(layer, head)}`}`,
          class: isOff(layer, head) ? "off" : "", onmouseenter: show, onfocus: () => look(layer, head),
          onkeydown: (event) => { if (event.key === "x" && switches) switches.toggle(layer, head); },
          onclick: () => { state.pinned = !(state.pinned && state.layer === layer && state.head === head); look(layer,
            head); },
        },
        canvas, el("span", { class: "name" }, isOff(layer, head) ? "off" : label(layer, head).replace(" token", "")),
      );
      canvases.push(canvas);
      buttons.push(button);
      find("grid").append(button);
    }
  }
  const anyNamed = heads.named.flat().some(Boolean);
  if (!anyNamed && !(switches && switches.off.size)) for (const name of document.querySelectorAll("#grid .name")) name.remove();
  roving(find("grid"), buttons, H);

  // Write the tokens along the left and the lower side of a matrix, at least 11 px apart: in two lines, or only some
  function axes(room, side, lines, t) {
    const cell = side / T, every = Math.ceil(11 / (cell * lines));
    const mark = { class: "mark", rx: 2, width: side, height: cell };
    const frame = svg("svg", { width: room + side, height: room + side, "aria-hidden": "true" },
      svg("rect", { ...mark, x: room, y: t * cell }),
      svg("rect", { ...mark, x: room + t * cell, y: 0, width: cell, height: side }));
    texts.forEach((text, s) => {
      if (s !== t && (s % every || Math.abs(s - t) < every)) return;
      const away = 11 * (Math.floor(s / every) % lines), middle = (s + 0.5) * cell;
      const look = { class: s === t ? "name strong" : "name" }, name = letters(visible(text), 0, 10);
      const below = longest === 1 ? { x: room + middle, y: side + 13 + away, "text-anchor": "middle" }
        : { transform: `translate(${room + middle + 4} ${side + 6}) rotate(-90)`, "text-anchor": "end" };
      frame.append(svg("text", { ...look, x: room - 5 - away, y: middle + 4, "text-anchor": "end" }, name),
        svg("text", { ...look, ...below }, name));
    });
    return frame;
  }

  function detail() {
    const { layer, head, token: t } = state, index = layer * H + head, kind = label(layer, head);
    const width = Math.min(544, find("detail").clientWidth), lines = longest === 1 && width / T < 11.5 ? 2 : 1;
    const room = longest === 1 ? 6 + 11 * lines : 8 + 6.7 * Math.min(10, longest), side = width - room;
    const canvas = el("canvas",
      { role: "img", "aria-label": `Attention of layer ${layer}, head ${head}: who looks (rows) at whom (columns)`,
        style: { width: `${side}px`, margin: `0 0 ${room}px ${room}px` } });
    paint(canvas, T, (from, to) => attention(layer, head, from, to));
    const readout = el("p", { class: "readout" });
    const showWeight = (from, to) => readout.replaceChildren(
      `Token ${from} `, token(texts[from]), " gives ", el("b", {}, percent(attention(layer, head, from, to))),
      ` of its attention to token ${to} `, token(texts[to]),
    );
    const strongest = [...Array(t + 1).keys()].reduce((best,
      s) => (attention(layer, head, t, s) > attention(layer, head, t, best) ? s : best), 0);
    showWeight(t, strongest);
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (value, size) => Math.min(T - 1, Math.max(0, Math.floor((value / size) * T)));
      return [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
    };
    const matrix = el("div", {
      class: "matrix",
      onmousemove: (event) => { const [from, to] = place(event); if (to <= from) showWeight(from, to); },
      onmouseleave: () => showWeight(t, strongest), onclick: (event) => choose(place(event)[0]),
    }, canvas, axes(room, side, lines, t));
    find("detail").replaceChildren(
      el("h3", {}, `Layer ${layer}, head ${head}`, el("span", {}, kind && `: ${kind}`, state.pinned ? " (held)" : "")),
      el("p", { class: "note" }, "A row: a token that looks; a column: a token that it looks at; framed: the chosen one."),
      ...(switches ? [el("button", { type: "button", class: "switch", role: "switch", "aria-checked": String(!isOff(layer, head)),
        onclick: () => switches.toggle(layer, head) }, el("span", { class: "knob", "aria-hidden": "true" }),
      isOff(layer, head) ? "This head is off: its result is not used" : "This head is on (key x)")] : []),
      matrix, readout,
      el("div", { class: "text small" }, ...texts.map((text, s) => el(
        "span", { class: s > t ? "later" : "looked",
          style: { "--v": Math.sqrt(attention(layer, head, t, s)), outline: s === t && "1.5px solid" } }, text))),
      el("p", { class: "note" },
        `This head looks ${data.look_back[layer][head].toFixed(1)} tokens back on average; the chosen token's `,
        `attention has the entropy of ${Math.exp(data.attention_entropy[layer][head][t]).toFixed(1)} tokens with equal weights. `,
        state.pinned ? "Click the head again to let go." : "Click a head to hold it."),
    );
    buttons.forEach((button, at) => {
      button.setAttribute("aria-current", String(at === index));
      button.classList.toggle("pinned", state.pinned && at === index);
      button.tabIndex = at === index ? 0 : -1;
    });
  }

  // --- head kinds ---

  function kinds() {
    const tables = el("div", { class: "kinds" }, ...heads.kinds.map((kind) => {
      const [name, about] = KINDS[kind], scores = heads.scores[kind];
      const rows = scores.map((row, layer) => el("tr", {}, el("th", { scope: "row" }, String(layer)),
        ...row.map((score, head) => {
        const called = heads.named[layer][head] === kind;
        return el("td", {}, el("button", {
          type: "button", class: called ? "called" : "", style: { "--v": score }, tabindex: called ? null : "-1",
          "aria-label": `${name}: layer ${layer}, head ${head}, ${score.toFixed(2)}`,
            title: `layer ${layer}, head ${head}`,
          onclick: () => { state.pinned = true; look(layer, head); find("h-attention").scrollIntoView(); },
        }, H > 8 ? (called ? "•" : "\u00a0") : score.toFixed(2).replace(/^0/, "")));
      })));
      return el("div", {}, el("h3", {}, name), el("p", {}, about, ` Chance: ${heads.chance[kind].toFixed(2)}.`),
        el("table", { "aria-label": `Scores: ${name}, a row for each layer, a column for each head` }, ...rows));
    }));
    find("kinds").replaceChildren(...(anyNamed ? [tables] : [
      el("p", {}, "No head has one of these kinds yet; train longer, or look at more heads."),
      el("details", {}, el("summary", {}, "Show the scores of all heads"), tables)]));
  }

  // --- logit lens ---

  const cells = texts.map(() => []);
  function lensTable() {
    const top = texts.map((text, t) => {
      const cell = el("td", { class: "token", title: `position ${t}`, onclick: () => choose(t) }, visible(text));
      cells[t].push(cell);
      return cell;
    });
    const body = lens.ids.map((row, l) => el("tr", {}, el("th", { scope: "row" }, stage(l)), ...row.map((ids, t) => {
      const p = lens.probs[l][t][0];
      const cell = el("td", {
        class: ids[0] === data.ids[t + 1] ? "right" : "", style: { "--v": p }, onclick: () => choose(t),
        title: ids.slice(0, 5).map((id,
          k) => `${visible(data.vocabulary[id])} ${percent(lens.probs[l][t][k])}`).join("\n"),
      }, visible(data.vocabulary[ids[0]]));
      cells[t].push(cell);
      return cell;
    })));
    find("lens").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "reads"), ...top)),
      el("tbody", {}, ...body)));
  }
  const stage = (l) => (l === 0 ? "embedding" : `layer ${l - 1}${l === L ? " (end)" : ""}`);

  function lensDetail() {
    const t = state.token, follows = data.ids[t + 1];
    const rows = lens.ids.map((row, l) => el("tr", {}, el("th", { scope: "row" }, stage(l)),
      ...row[t].slice(0, 3).map((id, k) => el("td", { class: id === follows ? "right" : "" },
        token(data.vocabulary[id]), " ", el("small", {}, percent(lens.probs[l][t][k]))))));
    cells.forEach((column, at) => column.forEach((each) => each.classList.toggle("chosen", at === t)));
    const box = el("div");
    find("lens-detail").replaceChildren(el("div", { class: "columns" },
      el("div", {}, el("p", { class: "caption" }, `After token ${t} `, token(texts[t]),
        ", the likeliest next tokens at each layer:"), el("table", { class: "layers" }, ...rows)),
      el("div", {}, el("p", { class: "caption" }, "Nats of surprise at the token that follows, by layer: ",
        el("b", {}, "here"), ", and the mean of all tokens (dashed):"), box),
    ));
    box.append(lensChart(t, box.clientWidth));
  }

  function lensChart(t, W) {
    const height = 170, left = 34, top = 10, x = (l) => left + 10 + (l * (W - left - 30)) / L;
    const means = lens.loss.map((row) => row.slice(1).reduce((sum, value) => sum + value, 0) / (T - 1));
    const average = T > 1 ? means : []; // the first token is not predicted, so one token alone has no mean
    const own = t + 1 < T ? lens.loss.map((row) => row[t + 1]) : [];
    const most = Math.max(1, ...average, ...own), y = (value) => top + height * (1 - value / most);
    const chart = picture(W, height + 36, "Surprise at the next token by layer, in nats");
    for (const value of [0, most / 2, most]) chart.append(
      svg("line", { class: "axis", x1: left, x2: W, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
    lens.loss.forEach((_, l) => chart.append(svg("text", { x: x(l), y: height + 30, "text-anchor": "middle" },
      l ? String(l - 1) : "emb")));
    const line = (values, look) => chart.append(svg("polyline",
      { fill: "none", points: values.map((value, l) => `${x(l)},${y(value)}`).join(" "), ...look }));
    line(average, { stroke: "var(--quiet)", "stroke-width": 1.5, "stroke-dasharray": "4 4" });
    line(own, { stroke: "var(--lens)", "stroke-width": 2.5 });
    own.forEach((value, l) => chart.append(svg("circle", { cx: x(l), cy: y(value), r: 3.5, fill: "var(--lens)" },
      svg("title", {}, `${stage(l)}: ${nats(value)} nats`))));
    return chart;
  }

  // --- residual stream ---

  function stream() {
    const P = data.parts.length, box = find("stream"), height = 260, left = 44, top = 12;
    const step = Math.max(26, (box.clientWidth - left) / P), W = left + P * step;
    const t = state.token, ends = data.stream_norm.at(-1).toSorted((a, b) => a - b);
    const own = [...data.stream_norm, ...data.written_norm].map((row) => row[t]);
    const most = 1.1 * Math.max(...own,
      ends[Math.floor(0.9 * (T - 1))]); // a line far above the others is cut off
    const x = (p) => left + (p + 0.5) * step, y = (value) => top + height * (1 - value / most);
    const chart = picture(W, height + 62, "Length of the residual stream after each part of the network",
      svg("clipPath", { id: "inside" }, svg("rect", { x: 0, y: 0, width: W, height: height + 62 })));
    const unit = 10 ** Math.floor(Math.log10(most)),
      gap = most / unit > 5 ? 2 * unit : most / unit > 2 ? unit : unit / 2;
    for (let value = 0; value <= most; value += gap) chart.append(
      svg("line", { class: "axis", x1: left, x2: W, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(3))));
    data.parts.forEach((name, p) => {
      const kind = p === 0 ? "--quiet" : p % 2 ? "--attention" : "--forward", wide = Math.min(30, step * 0.55);
      const written = data.written_norm[p][t];
      chart.append(
        svg("rect", { x: x(p) - wide / 2, y: y(written), width: wide, height: top + height - y(written), rx: 2,
          fill: `var(${kind})`, opacity: 0.75 },
          svg("title", {}, `${name} added ${written}; the stream is ${data.stream_norm[p][t]} long after it`)),
        svg("text", { x: x(p), y: top + height + 18, "text-anchor": "middle" }, p === 0 ? "emb" : p % 2 ? "att" : "ff"),
      );
      if (p % 2) chart.append(svg("text",
        { x: (x(p) + x(p + 1)) / 2, y: top + height + 38, "text-anchor": "middle", class: "strong" },
          step > 34 ? `layer ${(p - 1) / 2}` : String((p - 1) / 2)));
    });
    const line = (at, look) => svg("polyline",
      { fill: "none", "clip-path": "url(#inside)",
        points: data.stream_norm.map((row, p) => `${x(p)},${y(row[at])}`).join(" "), ...look });
    for (let at = 0; at < T; at++) if (at !== t) chart.append(line(at,
      { stroke: "var(--quiet)", "stroke-width": 1, opacity: Math.max(0.1, Math.min(0.4, 8 / T)) }));
    chart.append(line(t, { stroke: "var(--ink)", "stroke-width": 2.4 }));
    data.stream_norm.forEach((row,
      p) => chart.append(svg("circle", { cx: x(p), cy: y(row[t]), r: 3.6, fill: "var(--ink)" },
        svg("title", {}, `${row[t]} after ${data.parts[p]}`))));
    box.replaceChildren(chart);
    edges(box);
  }

  // --- choosing a token or a head ---

  function look(layer, head) {
    Object.assign(state, { layer, head });
    detail();
  }

  function choose(t) {
    if (t === state.token && spans[t].classList.contains("chosen")) return;
    state.token = t;
    spans.forEach((span, at) => {
      span.classList.toggle("chosen", at === t);
      span.setAttribute("aria-current", String(at === t));
      span.tabIndex = at === t ? 0 : -1;
    });
    find("position").value = t;
    find("where").replaceChildren("token ", el("b", {}, String(t)), ` (first 0, last ${T - 1}): `, token(texts[t]),
      loss[t] === null ? "" : `, surprise ${nats(loss[t])} nats`);
    draw();
    reveal(find("lens"), cells[t][0].offsetLeft);
    reveal(find("loss-chart"), (find("loss-chart").scrollWidth * t) / T);
  }

  function draw() {
    lossChart(); nextBars(); detail(); lensDetail(); stream();
  }

  function colours() {
    const ink = colour("--attention");
    canvases.forEach((canvas, at) => paint(canvas, T, (t, s) => attention(Math.floor(at / H), at % H, t, s), ink));
    detail();
  }

  find("position").max = T - 1;
  if (!before) {
    // Begin at the position with the highest entropy and the head with the highest score
    if (T > 1) state.token = entropy.indexOf(Math.max(...entropy.slice(0, -1)));
    let best = -1;
    for (const scores of Object.values(heads.scores)) scores.forEach((row, layer) => row.forEach((score, head) => {
      if (score > best) { best = score; Object.assign(state, { layer, head }); }
    }));
  }
  kinds();
  lensTable();
  choose(Math.min(state.token, T - 1));
  colours();
  if (focused === "grid") buttons[state.layer * H + state.head]?.focus({ preventScroll: true });
  if (focused === "detail") find("detail").querySelector("button")?.focus({ preventScroll: true });
  return { state, last: T - 1, choose, draw, colours };
}

// Connect the slider, the buttons next to it and the theme to the picture that `current` returns
function steer(current) {
  const dark = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const find = (id) => document.getElementById(id), colours = () => current() && current().colours();
  find("theme").addEventListener("click", () => {
    root.dataset.theme = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
    colours();
  });
  dark.addEventListener("change", colours);
  window.addEventListener("resize", () => current() && current().draw());
  for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", () => edges(box));
  const move = (to) => current() && current().choose(Math.max(0, Math.min(current().last, to)));
  find("position").addEventListener("input", (event) => move(Number(event.target.value)));
  find("earlier").addEventListener("click", () => current() && move(current().state.token - 1));
  find("later").addEventListener("click", () => current() && move(current().state.token + 1));
}

// Parallel coordinates on a canvas and a table that can be sorted, from the trials in #data. Drag along an axis to choose.
"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const { axes, rows, colours, metric, shown } = JSON.parse(holder.textContent);
  const box = document.getElementById("parallel");
  const canvas = box && box.querySelector("canvas"); // none where trials do not differ
  const said = document.getElementById("chosen");
  const clear = document.getElementById("clear");
  const more = document.getElementById("more");
  const body = document.querySelector("#trials tbody");
  const ranges = new Map(); // axis -> [low, high] as shares of its height
  const last = axes.length - 1; // the metric
  let hovered = -1, dragged = null, sorted = { column: last, down: true }, limit = shown;

  const HEIGHT = 360, TOP = 44, BOTTOM = 22;
  const shares = rows.map((row) => axes.map((axis, i) => shareOf(axis, row.v[i])));
  const ranks = new Map(rows.map((row, k) => [k, row.v[last]]).filter(([, v]) => v !== null).sort((a, b) => a[1] - b[1]).map(([k], i, all) => [k, all.length > 1 ? i / (all.length - 1) : 1]));
  const mix = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1), i = Math.min(Math.floor(place), colours.length - 2);
    const part = (hex, at) => parseInt(hex.slice(at, at + 2), 16);
    return `rgb(${[1, 3, 5].map((at) => Math.round(part(colours[i], at) + (place - i) * (part(colours[i + 1], at) - part(colours[i], at)))).join(",")})`;
  };

  function shareOf(axis, value) { // null: the trial has no such setting
    if (value === null || value === undefined) return null;
    if (axis.words) return axis.words.length > 1 ? axis.words.indexOf(value) / (axis.words.length - 1) : 0.5;
    const [low, high, x] = axis.log ? [axis.low, axis.high, value].map(Math.log) : [axis.low, axis.high, value];
    return high > low ? (x - low) / (high - low) : 0.5;
  }
  const short = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? String(+value.toPrecision(4)) : value);
  const left = (i, width) => 60 + (i * (width - 130)) / Math.max(1, last);
  const down = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  const isChosen = (k) => [...ranges].every(([i, [low, high]]) => shares[k][i] !== null && shares[k][i] >= low - 1e-9 && shares[k][i] <= high + 1e-9);

  function path(pen, k, width) {
    let open = false;
    pen.beginPath();
    shares[k].forEach((share, i) => {
      if (share === null) { open = false; return; }
      if (open) pen.lineTo(left(i, width), down(share)); else pen.moveTo(left(i, width), down(share));
      open = true;
    });
    pen.stroke();
  }

  function draw() {
    if (!box) return;
    const width = box.clientWidth, scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = width * scale; canvas.height = HEIGHT * scale; canvas.style.height = `${HEIGHT}px`;
    pen.scale(scale, scale);
    pen.clearRect(0, 0, width, HEIGHT);
    const order = rows.map((_, k) => k).sort((a, b) => (shares[a][last] ?? -1) - (shares[b][last] ?? -1));
    const chosen = order.filter(isChosen);
    if (chosen.length < rows.length) {
      pen.strokeStyle = "#e3e8ec"; pen.lineWidth = 1;
      order.filter((k) => !isChosen(k)).forEach((k) => path(pen, k, width));
    }
    pen.lineWidth = rows.length > 300 ? 1 : 1.6;
    pen.globalAlpha = rows.length > 300 ? 0.55 : 0.9;
    chosen.forEach((k) => { pen.strokeStyle = shares[k][last] === null ? "#c3ccd4" : mix(0.1 + 0.9 * ranks.get(k)); path(pen, k, width); });
    pen.globalAlpha = 1;
    if (hovered >= 0) { pen.strokeStyle = "#b8480a"; pen.lineWidth = 3; path(pen, hovered, width); }
    pen.font = "12px system-ui, sans-serif"; pen.textAlign = "center";
    axes.forEach((axis, i) => {
      const x = left(i, width);
      pen.strokeStyle = "#8a96a1"; pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(x, TOP); pen.lineTo(x, HEIGHT - BOTTOM); pen.stroke();
      pen.fillStyle = "#1d2733"; pen.font = "600 13px system-ui, sans-serif"; pen.fillText(axis.name, x, 18);
      pen.font = "12px system-ui, sans-serif"; pen.textAlign = "left";
      const marks = axis.words ? axis.words.map((word) => [word, shareOf(axis, word)]) : axis.ticks.map((value) => [short(value), shareOf(axis, value)]);
      marks.forEach(([word, share]) => {
        const y = down(share) + 4, room = pen.measureText(word).width;
        pen.fillStyle = "rgba(255,255,255,.86)"; pen.fillRect(x + 5, y - 11, room + 5, 15);
        pen.fillStyle = "#3c4854"; pen.fillText(word, x + 7, y);
      });
      pen.textAlign = "center";
      if (ranges.has(i)) {
        const [low, high] = ranges.get(i);
        pen.fillStyle = "rgba(11,107,181,.22)"; pen.strokeStyle = "#0b6bb5"; pen.lineWidth = 1.5;
        pen.fillRect(x - 8, down(high), 16, down(low) - down(high)); pen.strokeRect(x - 8, down(high), 16, down(low) - down(high));
      }
    });
    const values = chosen.map((k) => rows[k].v[last]).filter((v) => v !== null).sort((a, b) => a - b);
    const count = values.length, middle = count ? (values[(count - 1) >> 1] + values[count >> 1]) / 2 : null;
    said.textContent = `${chosen.length} of ${rows.length} trials` + (count ? `: best ${short(values[count - 1])}, median ${short(middle)}` : "");
    if (hovered >= 0) said.textContent = axes.map((axis, i) => `${axis.name} ${short(rows[hovered].v[i])}`).join("  ·  ");
    clear.hidden = !ranges.size;
  }

  function list() {
    const key = (k) => (sorted.column > last ? rows[k].e[sorted.column - last - 1] : rows[k].v[sorted.column]);
    const chosen = rows.map((_, k) => k).filter(isChosen).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === y) return a - b;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return (x < y ? -1 : 1) * (sorted.down ? -1 : 1);
    });
    body.replaceChildren(...chosen.slice(0, limit).map((k) => {
      const row = document.createElement("tr");
      [rows[k].r, ...rows[k].v, ...rows[k].e].forEach((value, i) => {
        const cell = document.createElement("td");
        cell.textContent = i === last + 1 && value !== null ? value.toFixed(2) : short(value);
        if (typeof value === "number") cell.className = "n";
        row.append(cell);
      });
      row.onmouseenter = () => { hovered = k; draw(); };
      row.onmouseleave = () => { hovered = -1; draw(); };
      return row;
    }));
    more.hidden = chosen.length <= limit;
    more.textContent = `show all ${chosen.length}`;
  }

  function axisAt(event) {
    const edge = canvas.getBoundingClientRect(), x = event.clientX - edge.left, y = event.clientY - edge.top;
    const i = axes.findIndex((_, n) => Math.abs(left(n, edge.width) - x) < 16);
    return { i, x, y, width: edge.width, share: Math.min(1, Math.max(0, 1 - (y - TOP) / (HEIGHT - TOP - BOTTOM))) };
  }
  function nearest({ x, y, width }) {
    let found = -1, least = 8;
    for (let k = 0; k < rows.length; k++) {
      if (!isChosen(k)) continue;
      for (let i = 0; i < last; i++) {
        const [a, b, from, to] = [left(i, width), left(i + 1, width), shares[k][i], shares[k][i + 1]];
        if (x < a || x > b || from === null || to === null) continue;
        const away = Math.abs(down(from + ((to - from) * (x - a)) / (b - a)) - y);
        if (away < least) { least = away; found = k; }
      }
    }
    return found;
  }
  if (box) listen();
  function listen() {
    canvas.addEventListener("pointerdown", (event) => {
      const at = axisAt(event);
      if (at.i < 0) return;
      dragged = { i: at.i, from: at.share, had: ranges.has(at.i) };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const at = axisAt(event);
      if (dragged) { ranges.set(dragged.i, [Math.min(dragged.from, at.share), Math.max(dragged.from, at.share)]); hovered = -1; draw(); return; }
      const found = at.i < 0 ? nearest(at) : -1;
      if (found !== hovered) { hovered = found; draw(); }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!dragged) return;
      const range = ranges.get(dragged.i);
      if (!range || range[1] - range[0] < 0.015) { // a click takes what is there
        const at = axisAt(event).share;
        if (axes[dragged.i].words && !dragged.had) ranges.set(dragged.i, [at - 0.5 / axes[dragged.i].words.length, at + 0.5 / axes[dragged.i].words.length]);
        else ranges.delete(dragged.i);
      }
      dragged = null; draw(); list();
    });
    canvas.addEventListener("pointerleave", () => { if (!dragged) { hovered = -1; draw(); } });
    clear.onclick = () => { ranges.clear(); draw(); list(); };
  }
  more.onclick = () => { limit = Infinity; list(); };
  document.querySelectorAll("#trials th button").forEach((button) => {
    button.onclick = () => {
      const column = Number(button.dataset.column);
      sorted = { column, down: sorted.column === column ? !sorted.down : column >= last };
      list();
    };
  });
  window.addEventListener("resize", draw);
  draw(); list();
})();

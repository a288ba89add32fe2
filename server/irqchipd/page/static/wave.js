// The timing diagram: a row a signal, time from left to right, and two cursors.

import { duration } from "./dom.js";

const ROW = 22, LEFT = 128, FOOT = 20, MOST = 24;

export class Wave {
  constructor(canvas, cursorsText) {
    this.canvas = canvas;
    this.text = cursorsText;
    this.cursors = [null, null]; // times
    this.last = 0; // the cursor that was set last
    this.span = 5e9;
    this.end = 0;
    canvas.addEventListener("pointerdown", (event) => this.set(this.next(), this.timeAt(event.offsetX)));
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.onmove = () => {};
  }

  next() {
    return this.cursors[0] === null ? 0 : this.cursors[1] === null ? 1 : 1 - this.last;
  }

  set(which, time) {
    this.cursors[which] = time;
    this.last = which;
    this.onmove();
  }

  clear() {
    this.cursors = [null, null];
    this.onmove();
  }

  key(event) {
    const which = { a: 0, b: 1 }[event.key];
    const step = this.span / (event.shiftKey ? 20 : 200);
    if (which !== undefined) this.set(which, this.cursors[which] ?? this.end - this.span / 2);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const at = this.cursors[this.last] ?? this.end - this.span / 2;
      this.set(this.last, at + (event.key === "ArrowLeft" ? -step : step));
    } else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  timeAt(x) {
    const width = this.canvas.clientWidth - LEFT;
    return this.end - this.span * (1 - (x - LEFT) / width);
  }

  // gaps are [from, to] in which events were not kept; now is the event that is stepped to, or null.
  draw(signals, end, gaps, now) {
    this.end = end;
    const from = end - this.span;
    const rows = [...signals].filter(([, segments]) => segments.some(([, to]) => to === null || to >= from)).slice(0, MOST);
    const height = Math.max(rows.length, 2) * ROW + FOOT;
    const scale = window.devicePixelRatio || 1;
    const { canvas } = this;
    if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
    const width = canvas.clientWidth;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px ui-monospace, 'DejaVu Sans Mono', monospace";
    pen.textBaseline = "middle";
    const x = (time) => LEFT + Math.max(0, (time - from) / this.span) * (width - LEFT);
    this.grid(pen, colour, width, height);
    pen.fillStyle = colour("off");
    for (const [begin, to] of gaps) if (to >= from) pen.fillRect(x(begin), 0, Math.max(x(to) - x(begin), 1), height - FOOT);
    rows.forEach(([name, segments], at) => {
      const top = at * ROW + 5, bottom = top + ROW - 9;
      pen.fillStyle = colour("ink");
      pen.fillText(name, 2, (top + bottom) / 2, LEFT - 8);
      pen.strokeStyle = colour("soft");
      pen.beginPath();
      pen.moveTo(LEFT, bottom + 0.5);
      pen.lineTo(width, bottom + 0.5);
      pen.stroke();
      for (const [begin, to, kind] of segments) {
        if (to !== null && to < from) continue;
        const left = x(begin), wide = Math.max(x(to ?? end) - left, 1.5);
        pen.fillStyle = colour(`${kind}-ground`);
        pen.fillRect(left, top, wide, bottom - top);
        pen.fillStyle = colour(kind);
        pen.fillRect(left, kind === "wait" ? bottom - 2 : top, wide, kind === "high" ? 2 : 3);
        if (begin >= from) pen.fillRect(left, top, 1.5, bottom - top);
        if (to !== null && wide > 3) pen.fillRect(left + wide - 1.5, top, 1.5, bottom - top);
      }
    });
    if (!rows.length) {
      pen.fillStyle = colour("soft");
      pen.fillText("Nothing has happened in this span.", LEFT, ROW);
    }
    const mark = (time, name, kind) => {
      if (time === null || time < from || time > end) return;
      pen.fillStyle = colour(kind);
      pen.fillRect(x(time) - 0.75, 0, 1.5, height - FOOT);
      pen.fillText(name, Math.min(x(time) + 3, width - 10), height - FOOT - 6);
    };
    mark(now, "", "error");
    this.cursors.forEach((time, which) => mark(time, "AB"[which], "focus"));
    this.tell(end);
  }

  grid(pen, colour, width, height) {
    pen.fillStyle = colour("soft");
    const steps = width < 600 ? 2 : 5;
    for (let step = 0; step <= steps; step++) {
      const at = LEFT + (width - LEFT) * step / steps;
      pen.globalAlpha = 0.35;
      pen.fillRect(Math.min(at, width - 1), 0, 1, height - FOOT);
      pen.globalAlpha = 1;
      pen.textAlign = step === 0 ? "left" : step === steps ? "right" : "center";
      const ago = this.span * (1 - step / steps);
      pen.fillText(ago ? `-${+(ago / 1e9).toFixed(3)} s` : "now", at, height - 8);
    }
    pen.textAlign = "left";
  }

  tell(end) {
    const [a, b] = this.cursors;
    const one = (name, time) => (time === null ? "" : `${name} ${duration(time - end)}  `);
    const between = a !== null && b !== null ? `B − A ${duration(b - a)}` : "";
    const text = one("A", a) + one("B", b) + between;
    if (this.text.textContent !== text) this.text.textContent = text;
  }
}

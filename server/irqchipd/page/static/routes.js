// The way of an interrupt, drawn: GSI, pin, vector and vCPU in four columns, with a curve for each step.

import { h, svg } from "./dom.js";

const MOST = 40; // ways that are drawn
const STEP = 18, TOP = 30, WIDTH = 640;
const X = [10, 190, 380, 560];

// Ways that are open or high come first, if there are too many.
export function drawRoutes(paths, count, heads = ["GSI", "Pin", "Vector", "vCPU"]) {
  const open = paths.filter((path) => path.on || !path.shut);
  const shown = open.slice(0, MOST);
  if (!shown.length) return h("p", { class: "off" }, `All ${count} routes end at masked pins.`);
  const columns = ["gsi", "pin", "vector"].map((key) => place(shown.map((path) => path[key])));
  columns.push(place(shown.flatMap((path) => path.vcpus)));
  const rows = Math.max(...columns.map((column) => column.size));
  const height = TOP + rows * STEP + 6;
  const picture = svg("svg", { class: "routes", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": shown.map(words).join("; ") },
    heads.map((head, at) => svg("text", { x: X[at], y: 14, class: "head" }, head)));
  const lit = columns.map(() => new Set());
  for (const path of [...shown].sort((a, b) => a.on - b.on)) {
    const way = svg("g", { class: path.on && !path.shut ? "on" : path.shut ? "shut" : "" });
    const steps = [path.gsi, path.pin, path.vector].filter(Boolean);
    for (let at = 0; at + 1 < steps.length; at++) way.append(curve(at, columns[at].get(steps[at]), columns[at + 1].get(steps[at + 1])));
    if (path.vector) for (const vcpu of path.vcpus) way.append(curve(2, columns[2].get(path.vector), columns[3].get(vcpu)));
    if (path.on) {
      steps.forEach((step, at) => lit[at].add(step));
      if (!path.shut) path.vcpus.forEach((vcpu) => lit[3].add(vcpu));
    }
    picture.append(way);
  }
  columns.forEach((column, at) => column.forEach((place, word) =>
    picture.append(svg("g", { class: lit[at].has(word) ? "on" : "" }, svg("text", { x: X[at], y: y(place) + 4 }, word)))));
  const hidden = count - shown.length;
  return [h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": "Drawing of the routes" }, picture), hidden ? h("p", { class: "help" }, `${hidden} routes that end at masked pins, or have no room here, are not drawn.`) : null];
}

function place(words) {
  return new Map([...new Set(words.filter(Boolean))].map((word, at) => [word, at]));
}

function y(place) {
  return TOP + place * STEP + 4;
}

function curve(column, from, to) {
  const left = X[column] + 92, right = X[column + 1] - 6, middle = (left + right) / 2;
  return svg("path", { d: `M${left} ${y(from)}C${middle} ${y(from)} ${middle} ${y(to)} ${right} ${y(to)}` });
}

function words(path) {
  const way = [path.gsi, path.pin, path.vector, path.vcpus.join(" or ")].filter(Boolean).join(" to ");
  return path.on ? `${way} (high)` : way;
}

// Elements, without HTML in strings: whatever a VM or a client is called, it is text.

export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function table(heads, rows, attributes = {}) {
  return h("table", attributes,
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows));
}

export function row(cells, attributes = {}) {
  return h("tr", attributes, cells.map((cell) => (cell instanceof Node && cell.nodeName === "TD" ? cell : h("td", {}, cell))));
}

export function mark(on, word, kind) {
  return on ? h("span", { class: `vector ${kind}` }, word) : "";
}

export function vectors(list, kind) {
  if (!list.length) return h("span", { class: "off" }, "none");
  return list.map((vector) => h("span", { class: `vector ${kind}` }, hex(vector)));
}

export function facts(pairs) {
  return h("dl", {}, pairs.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function hex(value, digits = 2) {
  return typeof value === "number" ? `0x${value.toString(16).padStart(digits, "0")}` : String(value);
}

export function duration(nanoseconds) {
  const size = Math.abs(nanoseconds);
  if (size >= 1e9) return `${(nanoseconds / 1e9).toFixed(3)} s`;
  if (size >= 1e6) return `${(nanoseconds / 1e6).toFixed(3)} ms`;
  return `${(nanoseconds / 1e3).toFixed(1)} µs`;
}

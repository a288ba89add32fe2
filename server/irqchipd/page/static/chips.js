// What all architectures' panels share: lines with their sources, and the list of panels.

import { h, mark, row, table } from "./dom.js";
import { panels as x86 } from "./x86.js";
import { panels as arm64 } from "./arm64.js";
import { panels as s390 } from "./s390.js";

const PANELS = { x86, arm64, s390 };

// A panel: its title, the parts that it shows, and the function that makes its contents of all parts.
export function panelsOf(parts) {
  if (!parts.vm) return [];
  return [{ title: "Lines", parts: ["lines"], draw: lines }, ...PANELS[parts.vm.architecture](parts)];
}

const KNOWN = { 0: "unary calls", 62: "PIT", 63: "resamplers" };

function lines(parts) {
  const names = new Map(parts.lines.sources.map(({ source, client }) => [source, client]));
  const high = parts.lines.lines.filter((line) => line.sources.length).length;
  const rows = parts.lines.lines.map((line) => row([
    line.name,
    mark(line.sources.length, "high", "high") || h("span", { class: "off" }, "low"),
    line.sources.map((source) => `${source} ${names.get(source) || KNOWN[source] || ""}`.trim()).join(", "),
  ], { "data-line": line.line }));
  return [
    rows.length && h("p", { class: "help" }, `${high} of ${rows.length} lines shown are high.`),
    rows.length && h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of lines" }, table(["Line", "Level", "Sources that drive it high"], rows)),
    rows.length ? null : h("p", { class: "off" }, "No line is high, and none has a route."),
    parts.lines.sources.length ? h("p", { class: "help" }, "Sessions: ", parts.lines.sources.map(({ source, client }) => `${source} ${client}`).join(", ")) : null,
  ];
}

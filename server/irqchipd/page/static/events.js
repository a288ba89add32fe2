// The list of the last events, and latencies measured on them.

import { duration, h, hex, row, table } from "./dom.js";

const MOST = 100;

export function eventPanel(events, fields, current, choose) {
  if (!events.length) return h("p", { class: "off" }, "Nothing has happened since somebody began to look.");
  const at = current === null ? events.length - 1 : current;
  const from = Math.max(0, Math.min(at - MOST / 2, events.length - MOST));
  const shown = events.slice(from, from + MOST);
  const rows = shown.map((event, place) => {
    const [number, time, tracepoint, values] = event;
    const names = fields[tracepoint] || [];
    const words = values.map((value, which) => `${names[which]} ${typeof value === "number" && value > 9 ? hex(value) : value}`).join(", ");
    const gap = place && number !== shown[place - 1][0] + 1 ? " (events before this one are missing)" : "";
    const chosen = current !== null && from + place === current;
    const cell = current === null ? String(number) : h("button", { type: "button", "aria-label": `Go to event ${number}` }, String(number));
    if (cell instanceof Node) cell.addEventListener("click", () => choose(from + place));
    return row([cell, `${(time / 1e6).toFixed(3)}`, tracepoint + gap, words], { "aria-current": chosen ? "true" : null });
  });
  if (current === null) rows.reverse();
  return table(["Event", "ms", "Tracepoint", "Fields"], rows);
}

export function countPanel({ vcpus, interrupts }) {
  if (!interrupts.length) return h("p", { class: "off" }, "Counting has begun; no interrupt has come since.");
  const times = (one) => (one ? `${duration(one.mean)}, 99 % below ${duration(one.most)}` : "");
  return table(["GSI", "Interrupt", "Of", "Clients", ...vcpus.map((vcpu) => `vCPU ${vcpu}`), "Accept", "EOI"], interrupts.map((one) => row([
    one.gsi < 0 ? "" : String(one.gsi), hex(one.number), `${one.kind} ${one.level ? "level" : "edge"}`, one.clients.join(", "),
    ...one.counts.map(String), times(one.accept), times(one.eoi),
  ])));
}

export function latencyPanel(latencies) {
  if (!latencies.length) return h("p", { class: "off" }, "No interrupt was taken and ended among the events that are kept.");
  const times = (one) => (one ? `${duration(one.mean)}, at most ${duration(one.most)} (${one.count})` : "");
  return table(["Interrupt", "Pending", "In service"], latencies.slice(0, 40).map((one) => row([one.name, times(one.wait), times(one.serve)])));
}

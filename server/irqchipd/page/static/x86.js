// A PC's chips: the PIC pair, the IOAPIC, local APICs, the PIT, and the routes between them.

import { duration, facts, h, hex, mark, row, table, vectors } from "./dom.js";
import { drawRoutes } from "./routes.js";

export function panels(parts) {
  const lapics = (parts.vcpus || []).map((vcpu) => ({
    title: `vCPU ${vcpu}`, parts: [`lapic${vcpu}`], draw: (now) => lapic(now[`lapic${vcpu}`]),
  }));
  return [
    parts.pic0 && { title: "PICs", parts: ["pic0", "pic1"], draw: (now) => [pic("Primary", now.pic0, 0), pic("Secondary", now.pic1, 8)] },
    ...lapics,
    parts.pit && { title: "PIT", parts: ["pit"], draw: (now) => pit(now.pit) },
    parts.ioapic && { title: "IOAPIC", wide: true, parts: ["ioapic"], draw: (now) => ioapic(now.ioapic) },
    { title: "Routing", wide: true, parts: ["routes", "lines", "ioapic", "pic0", "pic1", "vcpus", ...lapics.flatMap((one) => one.parts)], draw: routing },
  ].filter(Boolean);
}

function pic(name, chip, first) {
  const bits = (label, value, kind) => h("tr", {}, h("th", { scope: "row" }, label), [...Array(8).keys()].map((bit) =>
    value >> bit & 1 ? h("td", { class: kind }, "1") : h("td", { class: "off" }, "·")));
  return [
    h("h3", {}, `${name}: vectors from ${hex(chip.base)}`, chip.intr ? [" ", mark(true, "INTR high", "high")] : ""),
    h("table", { class: "bits" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "IRQ"), [...Array(8).keys()].map((bit) => h("th", { scope: "col" }, first + bit)))),
      h("tbody", {}, bits("IRR", chip.irr, "wait"), bits("ISR", chip.isr, "serve"), bits("IMR", chip.imr, "masked"),
        bits("line", chip.level, "high"), bits("level-triggered", chip.elcr, "high"))),
    h("p", { class: "help" }, `Highest priority: ${first + chip.first}.${chip.autoEoi ? " Auto-EOI." : ""}${chip.expects ? ` Expects ICW${chip.expects + 1}.` : ""}`),
  ];
}

function ioapic(chip) {
  const rows = chip.entries.map((entry, pin) => row([
    String(pin),
    mark(chip.irr >> pin & 1, "IRR", "wait"),
    h("td", { class: entry.masked ? "masked" : "" }, entry.masked ? "masked" : "open"),
    hex(entry.vector),
    entry.mode,
    `${entry.logical ? "logical" : "physical"} ${hex(entry.destination)}`,
    `${entry.level ? "level" : "edge"}${entry.activeLow ? ", active low" : ""}`,
    [mark(entry.remoteIrr, "remote IRR", "serve"), mark(entry.pending, "pending", "wait")],
    entry.raw,
  ], { "data-pin": pin }));
  return [
    h("p", { class: "help" }, `ID ${chip.id}, IRR ${hex(chip.irr, 6)}.`),
    h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": "Redirection entries" },
      table(["Pin", "Asserted", "Mask", "Vector", "Mode", "Destination", "Trigger", "State", "Entry"], rows)),
  ];
}

function lapic(vcpu) {
  if (vcpu.apic === undefined) return facts([["Runs", vcpu.mpState]]);
  const level = new Set(vcpu.tmr);
  const lvts = Object.entries(vcpu.lvts).map(([name, lvt]) => row([
    name, hex(lvt.vector), lvt.mode, h("td", { class: lvt.masked ? "masked" : "" }, lvt.masked ? "masked" : "open"), mark(lvt.pending, "pending", "wait"), lvt.raw,
  ]));
  return [
    facts([
      ["Runs", vcpu.mpState + (vcpu.boot ? ", boot CPU" : "")],
      ["Local APIC", `${vcpu.apic}, ID ${vcpu.id}, ${vcpu.enabled ? "enabled" : "disabled by SVR"}`],
      ["In service", h("span", { "data-isr": vcpu.isr.join(" ") }, vectors(vcpu.isr, "serve"))],
      ["Pending", h("span", { "data-irr": vcpu.irr.join(" ") }, vectors(vcpu.irr, "wait"))],
      ["TPR, PPR", h("span", { class: "number" }, `${hex(vcpu.tpr)}, ${hex(vcpu.ppr)}`)],
      level.size ? ["Level-triggered", [...level].map((vector) => hex(vector)).join(" ")] : null,
      vcpu.takes.length ? ["To take", vcpu.takes.join(", ")] : null,
      ["Timer", `${vcpu.timer.mode}, ${vcpu.timer.running ? "runs" : "stopped"}, initial count ${vcpu.timer.initial}`],
      ["LDR, DFR", h("span", { class: "number" }, `${hex(vcpu.ldr, 8)}, ${hex(vcpu.dfr, 8)}`)],
      ["ICR", h("span", { class: "number" }, vcpu.icr)],
    ]),
    h("details", {}, h("summary", {}, "Local vector table"), table(["LVT", "Vector", "Mode", "Mask", "State", "Entry"], lvts)),
  ];
}

const PIT_MODES = ["terminal count", "one-shot", "rate generator", "square wave", "software strobe", "hardware strobe"];

function pit(chip) {
  return [
    facts([
      ["Channel 0", chip.running ? `every ${duration(Number(chip.periodNs))}` : "stopped"],
      ["Ticks that wait", `${chip.pending}${chip.reinject ? "" : ", lost ones are not reinjected"}`],
    ]),
    table(["Channel", "Mode", "Count", "Gate"], chip.channels.map((channel, at) => row([at, PIT_MODES[channel.mode] || "not programmed", channel.count, channel.gate].map(String)))),
  ];
}

// Which vCPUs a message can be for: all that a logical destination may mean are left to the chips.
function targets(message, parts) {
  const vcpus = parts.vcpus || [];
  return vcpus.filter((vcpu) => {
    const chip = parts[`lapic${vcpu}`];
    if (!chip || chip.apic === undefined) return false;
    if (message.destination === 0xff) return true;
    if (!message.logical) return chip.id === message.destination;
    const ldr = chip.ldr >>> 24;
    if (chip.apic === "x2APIC") return (chip.ldr >>> 16) === 0 && (chip.ldr & message.destination) !== 0;
    if (chip.dfr >>> 28 === 0xf) return (ldr & message.destination) !== 0;
    return (ldr >> 4) === (message.destination >> 4) && (ldr & message.destination & 0xf) !== 0;
  });
}

const CHIPS = ["PIC ", "PIC ", "IOAPIC "];

function routing(parts) {
  const high = new Set(parts.lines.lines.filter((line) => line.sources.length).map((line) => line.line));
  const paths = [];
  for (const route of parts.routes.shown) {
    const path = { gsi: `GSI ${route.gsi}`, on: high.has(route.gsi), shut: false, pin: "", vector: "", vcpus: [] };
    let message = null;
    if (route.to === "msi") {
      path.pin = "MSI";
      message = route;
    } else if (route.chip === 2 && parts.ioapic) {
      const entry = parts.ioapic.entries[route.pin];
      path.pin = `IOAPIC ${route.pin}`;
      path.shut = entry.masked;
      if (!entry.masked || path.on) message = entry;
    } else {
      const chip = route.chip ? parts.pic1 : parts.pic0;
      path.pin = `${CHIPS[route.chip]}${8 * route.chip + route.pin}`;
      path.shut = Boolean(chip && chip.imr >> route.pin & 1);
      if (chip && !path.shut) {
        path.vector = hex(chip.base + route.pin);
        path.vcpus = ["INTR"];
      }
    }
    if (message) {
      path.vector = message.mode === "fixed" || message.mode === "lowest" ? hex(message.vector) : message.mode;
      path.vcpus = targets(message, parts).map((vcpu) => `vCPU ${vcpu}`);
    }
    paths.push(path);
  }
  return drawRoutes(paths, parts.routes.count);
}

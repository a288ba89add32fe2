// An arm64 VM's GIC: the distributor with its SPIs; per vCPU the redistributor, the CPU interface and the timers.

import { facts, h, hex, mark, row, table } from "./dom.js";
import { drawRoutes } from "./routes.js";

export function panels(parts) {
  return [
    ...(parts.vcpus || []).map((vcpu) => ({ title: `vCPU ${vcpu}`, parts: [`cpu${vcpu}`, "gic"], draw: (now) => cpu(now[`cpu${vcpu}`], now.gic) })),
    parts.gic && { title: "Distributor", wide: true, parts: ["gic", "spis"], draw: (now) => distributor(now.gic, now.spis) },
    parts.gic && { title: "Routing", wide: true, parts: ["spis", "lines"], draw: routing },
  ].filter(Boolean);
}

function interrupts(list, label) {
  if (!list.length) return h("p", { class: "off" }, "None is enabled, and nothing is pending.");
  const rows = list.map((one) => row([
    String(one.intid),
    one.enabled ? "yes" : h("span", { class: "masked" }, "no"),
    mark(one.line, "high", "high"),
    [mark(one.pending, "pending", "wait"), mark(one.active, "active", "serve")],
    one.level ? "level" : "edge",
    hex(one.priority),
    String(one.group),
    one.vcpu === null ? "none" : `vCPU ${one.vcpu}`,
    one.owner || (one.sources ? `from ${hex(one.sources)}` : one.route),
  ], { "data-intid": one.intid }));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    table(["INTID", "Enabled", "Line", "State", "Trigger", "Priority", "Group", "For", "Route"], rows));
}

function distributor(gic, spis) {
  return [
    facts([
      ["GIC", `version ${gic.version}, ${gic.enabled ? "forwards interrupts" : "disabled"}, ${gic.interrupts} INTIDs, ${gic.listRegisters} list registers`],
      ["Distributor", gic.distributor || "has no address"],
      gic.version === 2 ? ["CPU interfaces", gic.cpuInterfaces || "have no address"] : ["Redistributors", gic.redistributors.map((one) => one.base).join(", ") || "have no address"],
    ]),
    h("h3", {}, "Shared interrupts"),
    interrupts(spis, "Shared interrupts"),
  ];
}

function cpu(vcpu, gic) {
  const face = vcpu.interface;
  const timer = (one) => (one ? [`${one.enabled ? "on" : "off"}${one.masked ? ", masked" : ""}, compares with ${one.compare} `, mark(one.level, "high", "high")] : "none");
  return [
    facts([
      ["Runs", vcpu.mpState],
      vcpu.inputs.length ? ["Inputs high", vcpu.inputs.join(", ")] : null,
      vcpu.affinity ? ["Affinity", vcpu.affinity] : null,
      vcpu.redistributor ? ["Redistributor", vcpu.redistributor] : null,
      face ? ["CPU interface", `PMR ${hex(face.pmr)}, BPR ${face.bpr}, group 0 ${face.grpen0 ? "on" : "off"}, group 1 ${face.grpen1 ? "on" : "off"}, EOI mode ${face.eoim}`] : null,
      face ? ["Active priorities", vcpu.activePriorities.map((values) => values[0]).join(" ")] : null,
      face ? ["Queue", vcpu.queue.length ? vcpu.queue.map((intid) => h("span", { class: "vector wait" }, String(intid))) : h("span", { class: "off" }, "empty")] : null,
      ["Virtual timer", timer(vcpu.timers.virtual)],
      ["Physical timer", timer(vcpu.timers.physical)],
    ]),
    face ? [h("h3", {}, gic && gic.version === 2 ? "SGIs and PPIs" : "Redistributor's SGIs and PPIs"), interrupts(vcpu.private, "Private interrupts")] : null,
  ];
}

function routing(parts) {
  const high = new Set(parts.lines.lines.filter((line) => line.sources.length).map((line) => line.line));
  const paths = parts.spis.map((spi) => ({
    gsi: `spi:${spi.intid - 32}`, pin: "distributor", vector: `INTID ${spi.intid}`, vcpus: spi.vcpu === null ? [] : [`vCPU ${spi.vcpu}`],
    on: high.has(spi.intid), shut: !spi.enabled,
  }));
  return drawRoutes(paths, paths.length, ["Line", "Chip", "Interrupt", "vCPU"]);
}

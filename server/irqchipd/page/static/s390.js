// An s390 VM: floating interrupts, adapters, and vCPUs with their masks and their own interrupts.

import { facts, h, mark, row, table } from "./dom.js";

export function panels(parts) {
  return [
    { title: "Floating interrupts", parts: ["flic"], draw: (now) => flic(now.flic) },
    ...(parts.vcpus || []).map((vcpu) => ({ title: `vCPU ${vcpu}`, parts: [`cpu${vcpu}`], draw: (now) => cpu(now[`cpu${vcpu}`]) })),
    { title: "Adapters and routes", parts: ["adapters", "routes"], draw: (now) => adapters(now) },
  ];
}

function irqs(list, kind) {
  return list.map((irq) => row([
    h("td", { "data-irq": irq.type }, mark(true, irq.type, kind)),
    Object.entries(irq.fields).map(([name, value]) => `${name} ${typeof value === "number" ? `0x${value.toString(16)}` : value}`).join(", "),
  ]));
}

function flic(chip) {
  return [
    facts([
      ["FLIC", chip.device ? "made" : "not made"],
      ["Pending", String(chip.count)],
      ["Adapter suppression", chip.ais ? `single ${chip.simm.toString(2).padStart(8, "0")}, none ${chip.nimm.toString(2).padStart(8, "0")}` : "not there"],
      chip.pfault ? ["Page faults", "asynchronous"] : null,
    ]),
    chip.count ? table(["Interrupt", "Contents"], irqs(chip.interrupts, "wait")) : h("p", { class: "off" }, "None is pending."),
    chip.count > chip.interrupts.length ? h("p", { class: "help" }, `and ${chip.count - chip.interrupts.length} more`) : null,
  ];
}

function cpu(vcpu) {
  return [
    facts([
      ["Runs", vcpu.stopped ? "stopped" : "operating"],
      ["PSW", `${vcpu.psw}: ${vcpu.pswOpen.join(", ") || "nothing enabled"}`],
      ["CR0", `${vcpu.cr0}: ${vcpu.cr0Open.join(", ") || "nothing enabled"}`],
      ["CR6", `${vcpu.cr6}: subclasses ${vcpu.iscs.join(" ") || "none"}`],
      ["CR14", vcpu.cr14],
    ]),
    vcpu.pending.length + vcpu.accepted.length
      ? table(["Interrupt", "Contents"], [...irqs(vcpu.accepted, "serve"), ...irqs(vcpu.pending, "wait")])
      : h("p", { class: "off" }, "No interrupt of its own is pending."),
  ];
}

function adapters(parts) {
  const rows = parts.adapters.map((one) => row([String(one.id), String(one.isc), one.maskable ? (one.masked ? "masked" : "open") : "not maskable"]));
  const routes = parts.routes.shown.map((route) => row([String(route.gsi), String(route.adapter), String(route.bit)]));
  return [
    rows.length ? table(["Adapter", "Subclass", "Mask"], rows) : h("p", { class: "off" }, "No adapter is registered."),
    h("h3", {}, "Routes"),
    routes.length ? table(["GSI", "Adapter", "Indicator bit"], routes) : h("p", { class: "off" }, "No GSI leads to an adapter."),
  ];
}

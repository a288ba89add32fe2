// From events to signals over time: lines, and vectors that are pending or in service at a vCPU.

// A signal's segments are [from, to, kind]; to is null of one that goes on.
// Events are what the tracepoints say, and marks the phases of which there is no tracepoint.
export function signalsOf(events, fields, marks) {
  const signals = new Map();
  const sources = new Map(); // of each line: who drives it high
  const signal = (name) => {
    if (!signals.has(name)) signals.set(name, []);
    return signals.get(name);
  };
  const begin = (name, kind, time) => {
    const segments = signal(name), last = segments[segments.length - 1];
    if (last && last[1] === null) {
      if (last[2] === kind) return;
      last[1] = time;
    }
    segments.push([time, null, kind]);
  };
  const end = (name, kind, time) => {
    const segments = signals.get(name), last = segments && segments[segments.length - 1];
    if (last && last[1] === null && (kind === null || last[2] === kind)) last[1] = time;
  };
  const drive = (name, source, level, time) => {
    if (!sources.has(name)) sources.set(name, new Set());
    const driving = sources.get(name);
    if (level) driving.add(source);
    else driving.delete(source);
    if (driving.size) begin(name, "high", time);
    else end(name, "high", time), signal(name);
  };
  for (const [, time, tracepoint, values] of events) {
    const of = {};
    (fields[tracepoint] || []).forEach((field, at) => (of[field] = values[at]));
    const vector = () => `vCPU ${of.vcpu} ${hex(of.vector)}`;
    switch (tracepoint) {
      case "kvm_set_irq": drive(`GSI ${of.gsi}`, of.source, of.level, time); break;
      case "kvm_irq_line": drive(lineOf(of.kind, of.vcpu, of.number), "user", of.level, time); break;
      case "kvm_timer_update_irq": drive(`ppi:${of.vcpu}:${of.intid}`, "timer", of.level, time); break;
      case "kvm_apic_accept_irq": if (of.delivery_mode < 2) begin(vector(), "wait", time); break;
      case "kvm_inj_virq": begin(vector(), "serve", time); break;
      case "kvm_eoi": end(vector(), "serve", time); break;
      case "kvm_s390_inject_vm": begin(`floating ${typeOf(of.type)}`, "wait", time); break;
      case "kvm_s390_inject_vcpu": begin(`vCPU ${of.vcpu} ${typeOf(of.type)}`, "wait", time); break;
      case "kvm_s390_deliver_interrupt": end(`floating ${typeOf(of.type)}`, "wait", time); end(`vCPU ${of.vcpu} ${typeOf(of.type)}`, "wait", time); break;
    }
  }
  for (const [time, name, kind] of marks) {
    if (kind) begin(name, kind, time);
    else end(name, null, time);
  }
  return new Map([...signals].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
}

// How long a vector was pending, and in service: the count, the mean and the longest, of complete segments.
export function latenciesOf(signals) {
  const found = [];
  for (const [name, segments] of signals) {
    const of = (kind) => segments.filter((segment) => segment[2] === kind && segment[1] !== null).map(([from, to]) => to - from);
    const wait = of("wait"), serve = of("serve");
    if (wait.length || serve.length) found.push({ name, wait: sum(wait), serve: sum(serve) });
  }
  return found;
}

function sum(list) {
  return list.length ? { count: list.length, mean: list.reduce((a, b) => a + b, 0) / list.length, most: Math.max(...list) } : null;
}

// A line of an arm64 VM, as irqchipctl has it; kinds are KVM_ARM_IRQ_TYPE_*.
function lineOf(kind, vcpu, number) {
  if (kind === 1) return `spi:${number - 32}`;
  return kind === 2 ? `ppi:${vcpu}:${number}` : `${number ? "fiq" : "irq"}:${vcpu}`;
}

// KVM_S390_*.
const TYPES = {
  0xfffe0000: "stop", 0xfffe0001: "program", 0xfffe0002: "prefix", 0xfffe0003: "restart", 0xfffe0004: "pfault", 0xfffe0005: "pfault",
  0xfffe1000: "check", 0xffff1004: "clock", 0xffff1005: "timer", 0xffff1201: "signal", 0xffff1202: "call", 0xffff2401: "service", 0xffff2603: "virtio",
};

function typeOf(type) {
  return TYPES[type] || "I/O";
}

function hex(value) {
  return typeof value === "number" ? `0x${value.toString(16).padStart(2, "0")}` : value;
}

// Which phase each of a GIC's interrupts is in: the kernel has no tracepoint for the guest's acknowledgement and end.
export function phasesOf(parts) {
  const phases = new Map();
  const add = (list, where) => {
    for (const one of list) if (one.active || one.pending) phases.set(`${where} INTID ${one.intid}`.trim(), one.active ? "serve" : "wait");
  };
  add(parts.spis || [], "");
  if (parts.gic) for (const vcpu of parts.vcpus || []) add(parts[`cpu${vcpu}`]?.private || [], `vCPU ${vcpu}`);
  return phases;
}

export function marksBetween(before, now, time) {
  const marks = [];
  for (const [name, kind] of now) if (before.get(name) !== kind) marks.push([time, name, kind]);
  for (const name of before.keys()) if (!now.has(name)) marks.push([time, name, null]);
  return marks;
}

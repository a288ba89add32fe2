// Signals over time, from events and states: lines, and interrupts that are pending and in service. And how long that took.

// A state says how things are, whatever events were lost. A time that is only known from a state counts for no latency.
export class Signals {
  constructor(fields) {
    this.fields = fields; // of each event
    this.rows = new Map(); // segments by name: [from, to, kind], where to is null of one that goes on
    this.times = []; // [when, name, "wait" or "serve", how long]
    this.drivers = new Map(); // of lines: who drives each high
    this.pending = new Map(); // since when each waits: null where that is only known from a state
    this.serving = new Map(); // the same of those in service
    this.parts = {}; // the last known
    this.number = 0; // of the last event
    this.sorted = null;
  }

  // What happens.

  event([number, time, name, values]) {
    if (number !== this.number + 1) this.forget();
    this.number = number;
    const of = {};
    (this.fields[name] || []).forEach((field, at) => (of[field] = values[at]));
    const vector = () => `vCPU ${of.vcpu} ${hex(of.vector)}`;
    const intid = () => (of.intid < PRIVATE ? `vCPU ${of.vcpu} INTID ${of.intid}` : `INTID ${of.intid}`);
    switch (name) {
      case "kvm_set_irq": if (!this.parts.gic) this.drive(`GSI ${of.gsi}`, of.source, of.level, time); break;
      case "kvm_irq_line": if (of.kind === 0) this.level(`${of.number ? "fiq" : "irq"}:${of.vcpu}`, of.level, time); break;
      case "vgic_update_irq_pending":
        this.level(of.intid < PRIVATE ? `ppi:${of.vcpu}:${of.intid}` : `spi:${of.intid - PRIVATE}`, of.level, time);
        if (of.level) this.wait(intid(), time);
        else if (this.isLevel(of)) this.pending.delete(intid());
        break;
      case "kvm_apic_accept_irq": if (of.delivery_mode < 2) this.wait(vector(), time); break;
      case "kvm_inj_virq": this.take(vector(), time); break;
      case "kvm_eoi": this.finish(vector(), time); break;
      case "kvm_ack_irq": this.finishAtPic(of.chip, of.pin, time); break;
      case "gic_acknowledged": if (of.intid < SPECIAL) this.take(intid(), time); break;
      case "gic_ended": this.finish(intid(), time); break;
      case "kvm_s390_inject_vm": this.wait(`floating ${typeOf(of.type)}`, time, true); break;
      case "kvm_s390_inject_vcpu": this.wait(`vCPU ${of.vcpu} ${typeOf(of.type)}`, time, true); break;
      case "kvm_s390_deliver_interrupt": {
        const own = `vCPU ${of.vcpu} ${typeOf(of.type)}`;
        this.deliver(this.pending.has(own) ? own : `floating ${typeOf(of.type)}`, time);
        break;
      }
    }
  }

  drive(name, source, level, time) {
    const driving = this.drivers.get(name) || new Set();
    if (level) driving.add(source);
    else driving.delete(source);
    this.drivers.set(name, driving);
    this.draw(name, time);
  }

  level(name, level, time) {
    this.drivers.set(name, new Set(level ? ["line"] : []));
    this.draw(name, time);
  }

  // many: whether several of a name wait behind each other.
  wait(name, time, many = false) {
    const waiting = this.pending.get(name) || [];
    if (many || !waiting.length) this.pending.set(name, [...waiting, time]);
    this.draw(name, time);
  }

  taken(name, time) {
    const [since, ...others] = this.pending.get(name) || [null];
    this.measure(name, "wait", since, time);
    this.pending.delete(name);
    if (others.length) this.pending.set(name, others);
  }

  take(name, time) {
    this.taken(name, time);
    this.serving.set(name, time);
    this.draw(name, time);
  }

  // What is delivered is not in service.
  deliver(name, time) {
    this.taken(name, time);
    this.draw(name, time);
  }

  finish(name, time) {
    this.measure(name, "serve", this.serving.get(name) ?? null, time);
    this.serving.delete(name);
    this.draw(name, time);
  }

  finishAtPic(chip, pin, time) {
    const pic = this.parts[`pic${chip}`];
    if (chip > 1 || !pic) return;
    for (const name of this.serving.keys()) if (name.endsWith(` ${hex(pic.base + (pin & 7))}`)) this.finish(name, time);
  }

  isLevel({ vcpu, intid }) {
    const known = intid < PRIVATE ? this.parts[`cpu${vcpu}`]?.private : this.parts.spis;
    return (known || []).some((one) => one.intid === intid && one.level);
  }

  // Events are missing: what waits may wait since another time.
  forget() {
    for (const [name, waiting] of this.pending) this.pending.set(name, waiting.map(() => null));
    for (const name of this.serving.keys()) this.serving.set(name, null);
  }

  measure(name, kind, since, time) {
    if (since !== null) this.times.push([time, name, kind, time - since]);
  }

  // How things are.

  state(parts, time) {
    this.parts = parts;
    const now = phasesOf(parts);
    for (const [name, driving] of this.drivers) if (driving.size && !now.lines.has(name) && now.allLines) this.drivers.set(name, new Set());
    for (const [name, sources] of now.lines) this.drivers.set(name, new Set(sources));
    for (const [name, waiting] of this.pending) {
      const most = (now.wait.get(name) || 0) + (now.accepted.get(name.replace(/^(floating|vCPU \d+) /, "")) || 0);
      if (waiting.length > most && (now.allWait || !name.startsWith("floating"))) this.pending.set(name, waiting.slice(waiting.length - most));
    }
    for (const [name, count] of now.wait) {
      const waiting = this.pending.get(name) || [];
      this.pending.set(name, [...waiting, ...Array(Math.max(count - waiting.length, 0)).fill(null)]);
    }
    for (const name of [...this.serving.keys()]) if (!now.serve.has(name) && !now.atPics.has(name.split(" ").pop())) this.serving.delete(name);
    for (const name of now.serve) if (!this.serving.has(name)) this.serving.set(name, null);
    for (const name of new Set([...this.drivers.keys(), ...this.pending.keys(), ...this.serving.keys(), ...this.rows.keys()])) this.draw(name, time);
    for (const [name, waiting] of this.pending) if (!waiting.length) this.pending.delete(name);
  }

  // Forget what ended before a time.
  prune(before) {
    for (const [name, segments] of this.rows) {
      let over = 0;
      while (over < segments.length && segments[over][1] !== null && segments[over][1] < before) over++;
      segments.splice(0, over);
      if (!segments.length) {
        this.rows.delete(name);
        this.sorted = null;
      }
    }
    this.times.splice(0, this.times.findIndex(([when]) => when >= before) >>> 0);
  }

  draw(name, time) {
    const kind = this.serving.has(name) ? "serve" : this.pending.get(name)?.length ? "wait" : this.drivers.get(name)?.size ? "high" : null;
    let segments = this.rows.get(name);
    const last = segments?.[segments.length - 1];
    const on = last && last[1] === null ? last[2] : null;
    if (on === kind) return;
    if (on) last[1] = time;
    if (!kind) return;
    if (!segments) {
      this.rows.set(name, (segments = []));
      this.sorted = null;
    }
    segments.push([time, null, kind]);
  }

  get all() {
    this.sorted ||= new Map([...this.rows].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
    return this.sorted;
  }

  // How long each interrupt waited, and was in service: the count, the mean and the longest.
  get latencies() {
    const found = new Map();
    for (const [, name, kind, time] of this.times) {
      if (!found.has(name)) found.set(name, { name, wait: null, serve: null });
      const one = (found.get(name)[kind] ||= { count: 0, mean: 0, most: 0 });
      one.count++;
      one.mean += (time - one.mean) / one.count;
      one.most = Math.max(one.most, time);
    }
    return [...found.values()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  }
}

const PRIVATE = 32, SPECIAL = 1020; // INTIDs below are a vCPU's own, and from there on no interrupt's
const MOST_LINES = 256; // that a state has

// What a state has: lines with their sources, how many of each interrupt wait, and what is in service.
export function phasesOf(parts) {
  const now = { lines: new Map(), allLines: true, wait: new Map(), allWait: true, serve: new Set(), atPics: new Set(), accepted: new Map() };
  const more = (counts, name) => counts.set(name, (counts.get(name) || 0) + 1);
  const high = (parts.lines?.lines || []).filter((line) => line.sources.length);
  for (const line of high) now.lines.set(line.name.split(" (")[0], line.sources);
  now.allLines = high.length < MOST_LINES;
  const interrupts = (list, where) => {
    for (const one of list) {
      if (one.pending) more(now.wait, `${where}INTID ${one.intid}`);
      if (one.active) now.serve.add(`${where}INTID ${one.intid}`);
    }
  };
  interrupts(parts.spis || [], "");
  for (const irq of parts.flic?.interrupts || []) more(now.wait, `floating ${typeOf(irq.kind)}`);
  now.allWait = !parts.flic || parts.flic.count === parts.flic.interrupts.length;
  for (const pic of [parts.pic0, parts.pic1]) {
    for (let bit = 0; pic && bit < 8; bit++) if (pic.isr >> bit & 1) now.atPics.add(hex(pic.base + bit));
  }
  for (const vcpu of parts.vcpus || []) {
    const lapic = parts[`lapic${vcpu}`], cpu = parts[`cpu${vcpu}`];
    for (const vector of lapic?.irr || []) more(now.wait, `vCPU ${vcpu} ${hex(vector)}`);
    for (const vector of lapic?.isr || []) now.serve.add(`vCPU ${vcpu} ${hex(vector)}`);
    interrupts(cpu?.private || [], `vCPU ${vcpu} `);
    for (const irq of (parts.flic && cpu?.pending) || []) more(now.wait, `vCPU ${vcpu} ${typeOf(irq.kind)}`);
    for (const irq of cpu?.accepted || []) more(now.accepted, typeOf(irq.kind));
  }
  return now;
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

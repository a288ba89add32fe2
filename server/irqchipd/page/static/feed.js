// What comes from the daemon: a live stream of a VM's parts and events, and its history to step through.

import { Signals } from "./signals.js";

const MOST_EVENTS = 8000;
const LONGEST = 21e9; // nanoseconds that are drawn

// Events are [number, time, tracepoint, values]; times are nanoseconds since the daemon began to keep this history.
export class Feed {
  constructor(vm, fields, changed) {
    this.vm = vm;
    this.fields = fields;
    this.changed = changed; // called with the set of parts that have changed
    this.parts = {};
    this.begin();
    this.number = 0;
    this.time = 0;
    this.error = null;
    this.lost = false;
    this.arrived = 0;
    this.open();
  }

  begin() {
    this.events = [];
    this.signals = new Signals(this.fields);
  }

  open() {
    this.source = new EventSource(`api/vms/${encodeURIComponent(this.vm)}/live`);
    this.source.onmessage = (message) => this.take(JSON.parse(message.data));
    this.source.onerror = () => {
      this.lost = true;
      this.changed(new Set());
    };
  }

  close() {
    this.source.close();
  }

  take(message) {
    this.lost = false;
    this.error = message.error;
    if (message.whole) {
      if (message.number < this.number || message.time < this.time) this.begin(); // another history, whose times begin anew
      this.parts = {};
    }
    this.number = message.number;
    this.time = message.time;
    this.arrived = performance.now();
    const last = this.events.length ? this.events[this.events.length - 1][0] : 0;
    const events = message.events.filter((event) => event[0] > last);
    this.events.push(...events);
    if (this.events.length > MOST_EVENTS) this.events.splice(0, this.events.length - MOST_EVENTS);
    apply(this.parts, message.parts);
    this.signals.parts = this.parts;
    events.forEach((event) => this.signals.event(event));
    this.signals.state(this.parts, message.time);
    this.signals.prune(Math.max(message.time - LONGEST, this.events.length === MOST_EVENTS ? this.events[0][1] : 0));
    this.changed(new Set(Object.keys(message.parts)), message.whole);
  }

  // The time at the daemon by now.
  get now() {
    return this.lost ? this.time : this.time + (performance.now() - this.arrived) * 1e6;
  }
}

function apply(parts, changes) {
  for (const [name, part] of Object.entries(changes)) {
    if (part === null) delete parts[name];
    else parts[name] = part;
  }
}

// The past of a VM: the parts as they were after each event.
export class Past {
  static async load(vm, fields) {
    const answer = await fetch(`api/vms/${encodeURIComponent(vm)}/history`);
    if (!answer.ok) throw new Error(await answer.text());
    return new Past(await answer.json(), fields);
  }

  constructor({ states, events }, fields) {
    this.events = events;
    this.states = [];
    this.signals = new Signals(fields);
    let parts = {}, next = 0;
    for (const state of states) {
      parts = { ...parts };
      apply(parts, state.parts);
      if (!this.states.length) this.signals.parts = parts;
      while (next < events.length && events[next][0] <= state.number) this.signals.event(events[next++]);
      this.signals.state(parts, state.time);
      this.states.push({ ...state, parts });
    }
    while (next < events.length) this.signals.event(events[next++]); // behind the last state
    // Where there are no events, the states can be stepped through all the same.
    if (!events.length) this.events = this.states.map((state) => [state.number, state.time, "state", []]);
    this.at = this.events.length - 1;
  }

  get event() {
    return this.events[this.at];
  }

  // The first state after the event. An exact one has no other event in between but those of the same operation.
  get state() {
    const number = this.event ? this.event[0] : 0;
    const found = this.states.find((state) => state.number >= number);
    return found || this.states[this.states.length - 1];
  }

  // The time of the state, which is after its event.
  get time() {
    return this.event ? this.event[1] : 0;
  }

  step(by) {
    this.at = Math.min(Math.max(this.at + by, 0), this.events.length - 1);
  }
}

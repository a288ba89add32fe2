// The page: it chooses a VM, shows its panels, and pauses and steps.

import { panelsOf } from "./chips.js";
import { h } from "./dom.js";
import { countPanel, eventPanel, latencyPanel } from "./events.js";
import { Feed, Past } from "./feed.js";
import { Wave } from "./wave.js";

const find = (id) => document.getElementById(id);
const wave = new Wave(find("wave"), find("cursors"));
let fields = {}; // of tracepoints
let feed = null;
let past = null; // while the page is paused
let sections = new Map(); // by title: its element, panel, and the parts that it was last drawn of
let eventsDrawn = -Infinity;
let waiting = 0; // the timer that draws the events that came meanwhile

wave.onmove = () => drawWave();

function show(parts, changed) {
  if (!parts.vm) return;
  const panels = panelsOf(parts);
  const titles = panels.map((panel) => panel.title);
  if (titles.join() !== [...sections.keys()].join()) {
    sections = new Map(panels.map((panel) => [panel.title, section(panel)]));
    const elements = (wide) => panels.filter((panel) => Boolean(panel.wide) === wide).map((panel) => sections.get(panel.title).element);
    find("panels").replaceChildren(h("div", { class: "narrow" }, elements(false)), ...elements(true), eventSections());
    changed = null;
  }
  for (const panel of panels) {
    if (changed && !panel.parts.some((part) => changed.has(part))) continue;
    const { body } = sections.get(panel.title);
    const scrolls = [...body.querySelectorAll(".scroll")].map((one) => one.scrollTop);
    const open = Boolean(body.querySelector("details[open]"));
    const focused = body.contains(document.activeElement) ? [...body.querySelectorAll("[tabindex], summary")].indexOf(document.activeElement) : -1;
    body.replaceChildren(...[panel.draw(parts)].flat(9).filter(Boolean));
    body.querySelectorAll(".scroll").forEach((one, at) => (one.scrollTop = scrolls[at] || 0));
    if (open) body.querySelector("details").open = true;
    if (focused >= 0) body.querySelectorAll("[tabindex], summary")[focused]?.focus({ preventScroll: true });
  }
  const { vm } = parts, count = (parts.vcpus || []).length;
  const tsc = vm.tscKhz ? `, TSC ${vm.tscKhz} kHz` : "";
  find("about").textContent = `${vm.architecture}, irqchip ${vm.irqchip}, ${count} vCPU${count === 1 ? "" : "s"}, ${vm.virtual ? "virtual" : "real"} time${tsc}`;
}

function section(panel) {
  const id = `h-${panel.title.replace(/\W/g, "-")}`;
  const body = h("div");
  return { body, element: h("section", { "aria-labelledby": id, class: panel.wide ? "wide" : null }, h("h2", { id }, panel.title), body) };
}

function eventSections() {
  const fragment = document.createDocumentFragment();
  fragment.append(
    h("section", { "aria-labelledby": "h-latency", class: "wide" }, h("h2", { id: "h-latency" }, "Latencies, of the events that are kept"), h("div", { id: "latency" }), countDetails()),
    h("section", { "aria-labelledby": "h-events", class: "wide" }, h("h2", { id: "h-events" }, "Last events"), h("div", { id: "events", class: "scroll", tabindex: 0, role: "region", "aria-label": "Events" })));
  eventsDrawn = -Infinity;
  return fragment;
}

// Counting costs the VM something, and so it is done while this is open.
function countDetails() {
  const body = h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": "Counts" }, "The daemon begins to count.");
  const details = h("details", { id: "counts" }, h("summary", {}, "All since this was opened, as irqchipctl interrupts counts"), body);
  const look = async () => {
    if (!details.open || !details.isConnected) return;
    if (!past) {
      try {
        const answer = await fetch(`api/vms/${encodeURIComponent(feed.vm)}/interrupts`);
        body.replaceChildren(answer.ok ? countPanel(await answer.json()) : await answer.text());
      } catch {
        body.replaceChildren("no connection; trying again");
      }
    }
    setTimeout(look, 1000);
  };
  details.addEventListener("toggle", look);
  return details;
}

let known = { events: null, last: 0, gaps: [] };

// The times between which events are missing.
function gapsOf(events) {
  const last = events.length ? events[events.length - 1][0] : 0;
  if (known.events !== events || known.last !== last) {
    const gaps = [];
    for (let at = 1; at < events.length; at++) if (events[at][0] !== events[at - 1][0] + 1) gaps.push([events[at - 1][1], events[at][1]]);
    known = { events, last, gaps };
  }
  return known.gaps;
}

function drawWave() {
  if (!feed) return;
  const of = past || feed;
  // Of a past the whole is drawn, with the event in it: the end stays where it was when the page was paused.
  wave.draw(of.signals.all, past ? past.end : feed.now, gapsOf(of.events), past ? past.time : null);
}

function drawEvents(force) {
  const list = find("events");
  if (!list) return;
  if (!force && performance.now() - eventsDrawn < 500) {
    waiting ||= setTimeout(() => drawEvents(true), 500);
    return;
  }
  clearTimeout(waiting);
  waiting = 0;
  eventsDrawn = performance.now();
  const events = past ? past.events : feed.events;
  list.replaceChildren(eventPanel(events, fields, past ? past.at : null, (at) => step(at - past.at)));
  list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  find("latency").replaceChildren(latencyPanel((past || feed).signals.latencies));
}

function tell() {
  const status = find("status");
  const kind = feed.error ? "lost" : past ? "paused" : feed.lost ? "lost" : "live";
  const words = { live: "live", paused: "paused", lost: feed.error || "no connection; trying again" }[kind];
  if (status.textContent !== words) status.textContent = words;
  status.className = kind;
  let position = feed.number ? `last event: ${feed.number}` : "no event yet";
  if (past && past.event) {
    const state = past.state, between = state ? state.number - past.event[0] : 0;
    const exact = between > 0 ? `, state ${between} events later` : between < 0 ? `, state ${-between} events before` : "";
    position = `event ${past.event[0]} (${past.at + 1} of ${past.events.length}) ${past.event[2]}${exact}`;
  }
  find("position").textContent = position;
}

function changed(names, whole) {
  if (past) return;
  show(feed.parts, whole ? null : names);
  drawEvents(false);
  tell();
}

async function pause() {
  if (past || !feed) return;
  const of = feed;
  try {
    const loaded = await Past.load(of.vm, fields);
    if (of !== feed) return;
    past = loaded;
  } catch (error) {
    find("status").textContent = error.message;
    return;
  }
  past.end = Math.max(past.time, feed.now);
  feed.close();
  buttons();
  step(0);
}

function resume() {
  if (!past) return;
  past = null;
  buttons();
  begin(feed.vm);
}

function buttons() {
  find("pause").textContent = past ? "Go on" : "Pause";
  for (const id of ["first", "back", "forward", "last"]) find(id).disabled = !past;
}

function step(by) {
  if (!past) return;
  past.step(by);
  if (past.state) show(past.state.parts, null);
  if (past.time < past.end - wave.span || past.time > past.end) past.end = past.time + wave.span / 2;
  drawEvents(true);
  drawWave();
  tell();
}

function begin(vm) {
  feed?.close();
  past = null;
  buttons();
  find("view").hidden = false;
  feed = new Feed(vm, fields, changed);
}

async function vms() {
  try {
    const { vms: list } = await (await fetch("api/vms")).json();
    const select = find("vm"), names = list.map((vm) => vm.name);
    const gone = feed && !names.includes(feed.vm);
    if (gone) names.push(feed.vm);
    if ([...select.options].map((option) => option.value).join() !== names.join()) {
      select.replaceChildren(...names.map((name) => h("option", { value: name }, name === feed?.vm && gone ? `${name} (deleted)` : name)));
    }
    find("nothing").hidden = names.length > 0;
    if (!names.length) find("view").hidden = true;
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (!feed && names.length) begin(names.includes(wanted) ? wanted : names[0]);
    if (feed) select.value = feed.vm;
  } catch {
    if (feed) feed.lost = true;
  }
  setTimeout(vms, 2000);
}

find("vm").addEventListener("change", (event) => {
  location.hash = encodeURIComponent(event.target.value);
  begin(event.target.value);
});
find("pause").addEventListener("click", () => (past ? resume() : pause()));
find("first").addEventListener("click", () => step(-Infinity));
find("back").addEventListener("click", () => step(-1));
find("forward").addEventListener("click", () => step(1));
find("last").addEventListener("click", () => step(Infinity));
find("clear").addEventListener("click", () => wave.clear());
find("span").addEventListener("change", (event) => {
  wave.span = Number(event.target.value) * 1e9;
  drawWave();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input")) return;
  const does = { p: () => (past ? resume() : pause()), j: () => step(-1), k: () => step(1), Home: () => step(-Infinity), End: () => step(Infinity) }[event.key];
  if (!does || (!past && event.key !== "p")) return;
  event.preventDefault();
  does();
});

function frame() {
  if (!past && feed && !document.hidden) drawWave();
  setTimeout(() => requestAnimationFrame(frame), 50);
}

find("view").hidden = true;
fields = await (await fetch("api/tracepoints")).json();
vms();
frame();

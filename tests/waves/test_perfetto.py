"""The timeline counts the trace's interrupts, and its arrows lead from lines to vectors to their ends."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from irqchip_client.waves import Recording
from irqchip_client.waves.perfetto import write_perfetto
from tests.waves.test_waves import edges_of_the_trace, events, recording
from tests.waves.trace_processor import trace_processor

__all__ = ["recording"]

Event = dict[str, Any]


@pytest.fixture(scope="module")
def text(recording: Recording) -> str:
    file = io.StringIO()
    write_perfetto(recording, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def timeline(text: str) -> list[Event]:
    return list(json.loads(text)["traceEvents"])


def slices(timeline: list[Event]) -> Counter[str]:
    return Counter(event["name"] for event in timeline if event["ph"] == "X")


def test_a_slice_is_an_asserted_line_or_an_interrupt(recording: Recording, timeline: list[Event]) -> None:
    count = slices(timeline)
    for gsi in (4, 5, 20):
        assert count[f"gsi{gsi}"] == sum(level for _, level in edges_of_the_trace(recording, gsi))
    taken = Counter(event.fields["vector"] for event in events(recording, "kvm_inj_virq"))
    for vector in (0x34, 0x45, 0x71, 0x81):
        assert count[f"vector {vector:#04x} in service"] == taken[vector]
        assert count[f"vector {vector:#04x} pending"] in (taken[vector], taken[vector] + 1)
    assert count["IR4 in service"] == taken[0x24] > 0


def test_slices_of_a_thread_do_not_overlap(timeline: list[Event]) -> None:
    ends: dict[tuple[int, int], float] = defaultdict(float)
    for event in timeline:
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            assert event["ts"] >= ends[thread] - 1e-6, event
            ends[thread] = event["ts"] + event["dur"]


def test_arrows_lead_from_lines_over_vectors_to_their_ends(timeline: list[Event]) -> None:
    by_thread: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in timeline:
        if event["ph"] == "X":
            by_thread[event["pid"], event["tid"]].append(event)

    def at(flow: Event) -> str:
        (name,) = (
            event["name"]
            for event in by_thread[flow["pid"], flow["tid"]]
            if event["ts"] <= flow["ts"] < event["ts"] + event["dur"]
        )
        return str(name)

    ways: dict[int, list[str]] = defaultdict(list)
    for event in timeline:
        if event["ph"] in "stf":
            ways[event["id"]].append(at(event))
    whole = Counter(tuple(way) for way in ways.values())
    assert whole["gsi4", "vector 0x34 pending", "vector 0x34 in service", "vector 0x34 EOI"] > 0
    assert whole["gsi5", "vector 0x45 pending", "vector 0x45 in service", "vector 0x45 EOI"] > 0
    assert whole["gsi4", "IR4 pending", "IR4 in service", "IR4 EOI"] > 0
    assert whole["vector 0x71 pending", "vector 0x71 in service", "vector 0x71 EOI"] > 0
    lines = {way[0] for way in whole if way[0].startswith("gsi") and "0x34" in way[1]}
    assert lines == {"gsi4"}


def test_counters_end_with_what_the_trace_has(recording: Recording, timeline: list[Event]) -> None:
    last = {event["name"]: event["args"]["count"] for event in timeline if event["ph"] == "C"}
    driven = [*events(recording, "kvm_pic_set_irq"), *events(recording, "kvm_ioapic_set_irq")]
    coalesced = sum(event.fields["coalesced"] for event in driven)
    assert last == {"lost events": 0, "coalesced interrupts": coalesced}


@pytest.mark.long
def test_perfettos_own_trace_processor_counts_the_same(
    recording: Recording, text: str, timeline: list[Event], tmp_path: Path
) -> None:
    with trace_processor(tmp_path) as processor:
        processor.load(text)
        rows = processor.query("select name, count(*) as n from slice group by name")
        assert {row.name: row.n for row in rows} == slices(timeline)
        taken = Counter(event.fields["vector"] for event in events(recording, "kvm_inj_virq"))
        rows = processor.query(
            "select process.name as chip, slice.name as name, count(*) as n from slice"
            " join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)"
            " where slice.name like '% in service' group by chip, slice.name"
        )
        assert {(row.chip, row.name): row.n for row in rows} == {
            ("pic0", "IR4 in service"): taken.pop(0x24),
            ("pic0", "IR5 in service"): taken.pop(0x25),
            **{("vCPU 0 (lapic0)", f"vector {vector:#04x} in service"): count for vector, count in taken.items()},
        }
        (arrows,) = processor.query("select count(*) as n from flow")
        assert arrows.n == sum(event["ph"] in "tf" for event in timeline)
        (errors,) = processor.query("select total(value) as n from stats where severity = 'error'")
        assert errors.n == 0

"""Recordings, read back with other programs' readers: what they show is what the trace says."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from irqchip_client import Architecture, EventsDropped, Probe, ProbesChanged, TraceEvent, Vm, connect, ops
from irqchip_client.waves import Recording
from irqchip_client.waves.perfetto import write_perfetto

vcd = pytest.importorskip("vcd", reason="pyvcd is not installed: pip install 'irqchipd[vcd]'")

from irqchip_client.waves.vcd import write_gtkw, write_surfer, write_vcd  # noqa: E402
from tests.waiting import PATIENCE  # noqa: E402

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
LEVEL = 1 << 15
EOI = LAPIC + 0xB0


def play(vm: Vm, steps: int = 600) -> None:
    """Lines of several sources, PICs, an IOAPIC with edges and levels, MSIs, and a vCPU that takes and ends."""
    rng = Random(7)
    cpu = vm.vcpu(0)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)):
        cpu.pio_write(port, value)
    cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    for pin, entry in ((4, LEVEL | 0x34), (5, 0x45), (20, 0x56)):
        cpu.mmio_write(IOAPIC, 0x10 + 2 * pin)
        cpu.mmio_write(IOAPIC + 0x10, entry)
    with vm.session("device") as device:
        for step in range(steps):
            if step % 20 == 0:
                time.sleep(0.01)  # so that the reader loses nothing
            match rng.randrange(8):
                case 0 | 1:
                    device.run([ops.irq_line(rng.choice((4, 5, 20)), rng.choice((True, False)))])
                case 2:
                    vm.line(rng.choice((4, 5, 20))).pulse()
                case 3:
                    vm.signal_msi(0xFEE0_0000, rng.choice((0x71, 0x81)))
                case 4 | 5:
                    if cpu.acknowledge() is not None:
                        cpu.pio_write(0x20, 0x20)
                case _:
                    cpu.mmio_write(EOI, 0)
        # The end of a Session drops its levels, too, but the kernel has no tracepoint for that.
        device.run([ops.irq_line(gsi, False) for gsi in (4, 5, 20)])


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with connect("embedded:") as client, client.create_vm("a.vm-1") as vm:
        vm.create_irqchip()
        vm.create_vcpu(0)
        with Recording(vm.name, Architecture.X86) as made, vm.watch(probes=True) as watch:

            def read() -> None:
                for item in watch:
                    made.add(item)
                    if isinstance(item, TraceEvent) and item.fields.get("gsi") == 99:
                        break

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            play(vm)
            vm.line(99).raise_()
            reader.join(PATIENCE)
            assert not reader.is_alive()
            assert not made.lost
            yield made


def events(recording: Recording, name: str) -> list[TraceEvent]:
    return [item for item in recording if isinstance(item, TraceEvent) and item.tracepoint == name]


def edges_of_the_trace(recording: Recording, gsi: int) -> list[tuple[int, int]]:
    """The edges of a GSI's level by kvm_set_irq, with their times."""
    sources: set[int] = set()
    level, edges = 0, []
    assert recording.first_ns is not None
    for event in events(recording, "kvm_set_irq"):
        if event.fields["gsi"] == gsi:
            (sources.add if event.fields["level"] else sources.discard)(event.fields["source"])
            if bool(sources) != level:
                level = bool(sources)
                edges.append((event.time_ns - recording.first_ns, int(level)))
    return edges


@pytest.fixture(scope="module")
def file(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("waves") / "irqs.vcd"
    with path.open("w") as opened:
        write_vcd(recording, opened)
    return path


def with_pywellen(path: Path) -> dict[str, list[tuple[int, int | None]]]:
    pywellen = pytest.importorskip("pywellen", reason="pywellen, an independent reader, is not installed")
    waveform = pywellen.Waveform(str(path))
    found: dict[str, list[tuple[int, int | None]]] = {}
    for variable in waveform.all_vars():
        found[variable.full_name] = [(time, number_of(value)) for time, value in variable.tv]
    return found


def number_of(value: int | str) -> int | None:
    """A value; None where it is not known."""
    if isinstance(value, int):
        return value
    return int(value, 2) if set(value) <= set("01") else None


def with_pyvcd(path: Path) -> dict[str, list[tuple[int, int | None]]]:
    from vcd.reader import TokenKind, tokenize

    scopes: list[str] = []
    names: dict[str, str] = {}
    found: dict[str, list[tuple[int, int | None]]] = {}
    time = 0
    with path.open("rb") as opened:
        for token in tokenize(opened):
            if token.kind is TokenKind.SCOPE:
                scopes.append(token.scope.ident)
            elif token.kind is TokenKind.UPSCOPE:
                scopes.pop()
            elif token.kind is TokenKind.VAR:
                names[token.var.id_code] = ".".join([*scopes, token.var.reference])
                found[names[token.var.id_code]] = []
            elif token.kind is TokenKind.CHANGE_TIME:
                time = token.time_change
            elif token.kind is TokenKind.CHANGE_SCALAR:
                value = token.scalar_change.value
                found[names[token.scalar_change.id_code]].append((time, int(value) if value in "01" else None))
            elif token.kind is TokenKind.CHANGE_VECTOR:
                change = token.vector_change
                found[names[change.id_code]].append((time, change.value if isinstance(change.value, int) else None))
    return found


@pytest.mark.parametrize("read", [with_pywellen, with_pyvcd])
def test_lines_have_the_edges_of_the_trace(recording: Recording, file: Path, read: Any) -> None:
    waves = read(file)
    for gsi in (4, 5, 20):
        edges = edges_of_the_trace(recording, gsi)
        assert len(edges) > 10
        shown = [(time, value) for time, value in waves[f"a_vm_1.lines.gsi{gsi}"] if value is not None]
        assert shown[shown[0] == (0, 0) :] == edges


@pytest.mark.parametrize("read", [with_pywellen, with_pyvcd])
def test_registers_have_an_interrupts_way(recording: Recording, file: Path, read: Any) -> None:
    waves = read(file)
    taken = Counter(event.fields["vector"] for event in events(recording, "kvm_inj_virq"))
    ended = Counter(event.fields["vector"] for event in events(recording, "kvm_eoi"))
    for vector in (0x34, 0x45, 0x71, 0x81):
        in_service = [value for _, value in waves[f"a_vm_1.lapic0.isr_{vector}"]]
        assert in_service.count(1) == taken[vector] > 0
        assert in_service.count(0) - (in_service[0] == 0) in (ended[vector], ended[vector] + 1)
    assert {value for _, value in waves["a_vm_1.lapic0.in_service"]} >= {0, *taken} - {0x24, 0x25, None}
    assert max(value or 0 for _, value in waves["a_vm_1.lapic0.ppr"]) >= 0x80
    assert {value for _, value in waves["a_vm_1.pic0.imr"]} >= {0}
    assert 1 in [value for _, value in waves["a_vm_1.ioapic0.remote_irr_4"]]
    coalesced = [event for event in recording if isinstance(event, TraceEvent)]
    assert waves["a_vm_1.coalesced"][-1][1] == sum(event.fields.get("coalesced", 0) for event in coalesced)


def test_both_readers_see_the_same(file: Path) -> None:
    ours, theirs = with_pyvcd(file), with_pywellen(file)
    assert ours.keys() == theirs.keys()
    for name, changes in ours.items():
        known = [change for change in changes if change[1] is not None]
        assert [change for change in theirs[name] if change[1] is not None] == known, name


def test_the_viewers_files_name_what_the_waveform_has(recording: Recording, tmp_path: Path) -> None:
    path, gtkw, surfer = tmp_path / "irqs.vcd", io.StringIO(), io.StringIO()
    with path.open("w") as opened:
        waves = write_vcd(recording, opened)
    write_gtkw(waves, str(path), gtkw)
    write_surfer(waves, surfer)
    there = set(with_pyvcd(path))
    lines = gtkw.getvalue().splitlines()
    assert f'[dumpfile] "{path}"' in lines
    traced = {line.partition("[")[0] for line in lines if line.startswith("a_vm_1.")}
    added = {line.split()[1] for line in surfer.getvalue().splitlines() if line.startswith("variable_add ")}
    assert traced == added
    assert traced <= there
    assert {"a_vm_1.lines.gsi4", "a_vm_1.pic0.irr", "a_vm_1.ioapic0.remote_irr", "a_vm_1.lapic0.in_service"} <= traced


def test_lost_events_make_everything_unknown_and_are_counted(tmp_path: Path) -> None:
    with Recording("vm", Architecture.X86) as recording:
        recording.add(ProbesChanged(1000, {"pic0.irr": Probe(8, 1), "gsi4": Probe(64, 2)}, all=True))
        recording.add(EventsDropped(5))
        recording.add(ProbesChanged(2000, {"pic0.irr": Probe(8, 2)}, all=True))
        path = tmp_path / "lost.vcd"
        with path.open("w") as opened:
            write_vcd(recording, opened)
        waves = with_pyvcd(path)
        assert waves["vm.pic0.irr"][-3:] == [(0, 1), (1, None), (1000, 2)]
        assert waves["vm.lines.gsi4"][-3:] == [(0, 1), (1, None), (1000, 0)]
        assert waves["vm.lost"][-1] == (1, 5)
        timeline = io.StringIO()
        write_perfetto(recording, timeline)
    counters = [event for event in json.loads(timeline.getvalue())["traceEvents"] if event["ph"] == "C"]
    assert [event["args"]["count"] for event in counters if event["name"] == "lost events"] == [0, 5]


def test_a_line_of_an_arm64_vm_and_its_gic_are_shown(tmp_path: Path) -> None:
    from irqchip_client import GicHost
    from irqchip_client.arm64 import spi

    with connect("embedded:") as client:
        vm = client.create_vm("arm", architecture=Architecture.ARM64, gic=GicHost(version=3))
        vm.create_vcpu(0).init()
        vm.create_gic(version=3)
        with Recording("arm", Architecture.ARM64) as recording, vm.watch(probes=True) as watch:
            vm.line(spi(4)).raise_()
            for item in watch:
                recording.add(item)
                if isinstance(item, ProbesChanged) and not item.all:
                    break
            path, timeline = tmp_path / "arm.vcd", io.StringIO()
            with path.open("w") as opened:
                write_vcd(recording, opened)
            write_perfetto(recording, timeline)
    waves = with_pyvcd(path)
    assert waves["arm.lines.spi4"][-1][1] == 1
    assert waves["arm.gic.spi.pending"][-1][1] in (0, 1 << 4)
    assert {"arm.gic.cpu0.running_priority", "arm.gic.cpu0.active", "arm.gic.spi.active"} <= waves.keys()
    assert "spi4" in {event["name"] for event in json.loads(timeline.getvalue())["traceEvents"]}

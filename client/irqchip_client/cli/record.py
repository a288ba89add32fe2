"""record: a VM's interrupts as waveforms and as a timeline, in files."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import click

import irqchip_client

from ._common import command, pass_vm

if TYPE_CHECKING:
    from irqchip_client.waves import Recording

_FILE = click.Path(dir_okay=False, writable=True)
_NO_PYVCD = "--vcd needs the package pyvcd, which is not installed: pip install 'irqchipd[vcd]'"


@command(example="--vcd irqs.vcd --seconds 5")
@pass_vm
@click.option("--vcd", type=_FILE, metavar="FILE", help="Write a VCD file, and FILE.gtkw and FILE.sucl beside it.")
@click.option("--perfetto", type=_FILE, metavar="FILE", help="Write a JSON trace that ui.perfetto.dev opens.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this time.")
def record(vm: irqchip_client.Vm, vcd: str | None, perfetto: str | None, seconds: float | None) -> None:
    """Record a VM's lines and chips, until Ctrl-C or the VM's end.

    The files show every line that is driven and its sources, the PICs, the IOAPIC, and every local APIC; of an arm64 VM
    the GIC. They are written when the recording ends. `gtkwave FILE.gtkw` and `surfer -c FILE.sucl FILE.vcd` open the
    VCD file with its lines and chips in order.
    """
    if not (vcd or perfetto):
        raise click.UsageError("nothing to record to: give --vcd FILE, --perfetto FILE, or both")
    if vcd:
        try:
            import vcd as _  # noqa: F401
        except ImportError:
            raise click.ClickException(_NO_PYVCD) from None
    from irqchip_client.waves import Recording

    info = vm.info()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {path: stack.enter_context(open(path, "w")) for path in _paths(vcd, perfetto)}
        recording = stack.enter_context(Recording(vm.name, info.architecture))
        ended = _record(vm, recording, seconds)
        _write(recording, files, vcd, perfetto)
    lost = f", {recording.lost} lost" if recording.lost else ""
    click.echo(f"{recording.events} events{lost}: {', '.join(files)}")
    if ended is not None:
        raise ended


def _paths(vcd: str | None, perfetto: str | None) -> list[str]:
    """The files to write. They are opened first, so that a recording is not in vain."""
    beside = [os.path.splitext(vcd)[0] + suffix for suffix in (".gtkw", ".sucl")] if vcd else []
    return [path for path in (vcd, *beside, perfetto) if path]


def _record(vm: irqchip_client.Vm, recording: Recording, seconds: float | None) -> irqchip_client.IrqchipError | None:
    """Record until the end. Returns the error that ended it, unless that is the VM's deletion or the user."""
    try:
        with _interruptible(), suppress(KeyboardInterrupt), vm.watch(probes=True) as events:
            timer = threading.Timer(seconds or 0, events.close)
            timer.daemon = True
            if seconds is not None:
                timer.start()
            click.echo(f"recording{'' if seconds is None else f' for {seconds:g} seconds'}: Ctrl-C ends it", err=True)
            try:
                for event in events:
                    recording.add(event)
            finally:
                timer.cancel()
    except irqchip_client.NotFound:
        if recording.first_ns is None:
            raise
    except irqchip_client.IrqchipError as error:
        if recording.first_ns is None:
            raise
        return error
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a recording as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(recording: Recording, files: dict[str, TextIO], vcd: str | None, perfetto: str | None) -> None:
    if vcd:
        from irqchip_client.waves.vcd import write_gtkw, write_surfer, write_vcd

        waves = write_vcd(recording, files[vcd])
        gtkw, sucl = _paths(vcd, None)[1:]
        write_gtkw(waves, os.path.abspath(vcd), files[gtkw])
        write_surfer(waves, files[sucl])
    if perfetto:
        from irqchip_client.waves.perfetto import write_perfetto

        write_perfetto(recording, files[perfetto])

"""run: a guest."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

import irqchip_client
from irqchip_client.vmm.pc.memory_map import MEMORY_LIMIT, MIB

from ._common import command, connect, is_named, number
from .durations import SECONDS
from .exits import shown_exits
from .machines import LOCAL, OPTIONAL, Wanted, choose_machine

if TYPE_CHECKING:
    from irqchip_client.vmm.run import Vcpus

# Exit statuses of `run`: the guest's own, (value << 1) | 1, are odd.
TIME_IS_UP, CAN_NOT_GO_ON, REFUSED = 124, 126, 2
# Signals that end the run; a second one ends the process at once.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWITCH_INTERVAL = 0.0005  # seconds that a vCPU's thread may keep the interpreter from a device's message
SILENCE = 3  # seconds of waiting before a message
BIGGEST = MEMORY_LIMIT // MIB  # the chips' addresses are above


class _Refused(click.ClickException):
    exit_code = REFUSED


class _CanNotGoOn(click.ClickException):
    exit_code = CAN_NOT_GO_ON


class _TimeIsUp(click.ClickException):
    exit_code = TIME_IS_UP


class _FwCfgFile(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    """NAME=FILE: a name, and the file's content."""

    name = "fw_cfg file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, bytes]:
        if isinstance(value, tuple):
            return value
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            self.fail(f"{value!r:.100} is no NAME=FILE: write opt/example=message.txt, for example", param, ctx)
        try:
            return name, Path(path).read_bytes()
        except OSError as error:
            self.fail(f"{path} can't be read: {error.strerror or error}", param, ctx)


FW_CFG_FILE = _FwCfgFile()


class _Ended(BaseException):
    """A signal ended the run before a vCPU ran."""


@command(example="--kernel guest.elf")
@click.option(
    "--arch",
    type=click.Choice(["x86", "arm64"]),
    help="The guest's architecture. [default: arm64 if the kernel is an image for it]",
)
@click.option(
    "--cpu",
    type=click.Choice(["kvm", "unicorn"]),
    help="What executes the guest. arm64: only unicorn. [default: kvm if /dev/kvm can be used]",
)
@click.option(
    "--kernel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Linux bzImage, a multiboot image, an ELF file with an entry for PVH, or a flat binary, which starts in real"
    " mode at 7c00h. arm64: an ELF file, or Linux's Image.",
)
@click.option(
    "--firmware",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Instead of a kernel, run firmware, SeaBIOS for example. FILE is ROM that ends at 4 GiB.",
)
@click.option(
    "--initrd",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Load FILE as the kernel's initrd, or as its only multiboot or PVH module.",
)
@click.option(
    "--append",
    metavar="TEXT",
    default="",
    help="The kernel's command line. Of a multiboot kernel it begins with the kernel's name.",
)
@click.option(
    "--fw-cfg",
    "files",
    metavar="NAME=FILE",
    type=FW_CFG_FILE,
    multiple=True,
    help="Give the guest FILE's content as fw_cfg's file NAME. May be repeated.",
)
@click.option(
    "--memory", type=number(2, BIGGEST), default=128, show_default=True, metavar="MIB", help="The guest's RAM."
)
@click.option(
    "--disk",
    "disks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Run an IDE channel in this process, with FILE as its disk. May be given twice, for disk 0 and disk 1.",
)
@click.option("--gic", type=click.Choice(["2", "3"]), default="3", show_default=True, help="arm64: the GIC's version.")
@click.option(
    "--cpus",
    "--vcpus",
    "vcpus",
    type=number(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="The number of vCPUs. Unicorn supports only 1.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="S",
    help="End the run after S seconds, including the wait for --await. [default: no limit]",
)
@click.option(
    "--stats",
    is_flag=True,
    help="At the end, and at every SIGUSR1, print the guest's exits by kind and address to stderr, with their number,"
    " times and answerer.",
)
@click.option("--vm", "name", metavar="NAME", default="", help="The VM's name. [default: the daemon chooses one]")
@click.option(
    "--with",
    "added",
    type=click.Choice(OPTIONAL),
    multiple=True,
    help="Run this device here, too, so that no other process has to: a real-time clock, which Linux waits for.",
)
@click.option(
    "--without",
    type=click.Choice(LOCAL),
    multiple=True,
    help="Do not run this device here, because another process does. May be repeated.",
)
@click.option(
    "--await",
    "awaited",
    metavar="CLIENT",
    multiple=True,
    help="Wait until a client of this name has claimed its ports or addresses. May be repeated.",
)
@click.option(
    "--await-timeout",
    "await_timeout",
    type=SECONDS,
    default=60,
    show_default=True,
    metavar="S",
    help="How long --await waits, in seconds.",
)
@click.option(
    "--listen",
    metavar="PATH",
    help="Without --target: listen on the unix socket PATH. [default: the default socket with --await, otherwise no"
    " socket]",
)
def run(
    arch: str | None,
    cpu: str | None,
    kernel: Path | None,
    firmware: Path | None,
    initrd: Path | None,
    append: str,
    files: tuple[tuple[str, bytes], ...],
    memory: int,
    disks: tuple[Path, ...],
    gic: str,
    vcpus: int,
    timeout: float | None,
    stats: bool,
    name: str,
    without: tuple[str, ...],
    added: tuple[str, ...],
    awaited: tuple[str, ...],
    await_timeout: float,
    listen: str | None,
) -> None:
    """Run a guest in a new VM, and delete the VM at the end.

    The VM has an irqchip, a PIT and vCPUs. This process executes the vCPUs, and has these devices: a 16550A serial port
    at 3f8h with GSI 4, connected to the terminal (Ctrl-] ends the run); port f4h, where a write ends the run; fw_cfg at
    510h; ports 2000h + n, which drive GSI n; a VGA's CRT controller at 3d4h; and ACPI's power management at 600h and
    cf9h. With --disk it also has an IDE channel at 1f0h and 3f6h, with GSI 14. Other processes may run further devices:
    see `device`. An MP table and ACPI's tables describe the machine when the guest starts.

    For arm64, the VM has RAM from 40000000h on, and a GIC at the addresses of QEMU's virt board. The serial port is at
    9000000h with SPI 1, and PSCI's SYSTEM_OFF ends the run.

    Without --target, this process is also the daemon. Other processes connect to the socket of --listen PATH, with
    --target unix:///PATH. With --await and without --listen, they connect to the default socket. With --listen, --await
    or --target the guest's memory is a memfd, which devices of other processes map (virtio's, for example).

    Exit status: if the guest wrote a value to port f4h, (value << 1) | 1; 0 if the guest turned the machine off or
    reset it, or if Ctrl-] or the VM's deletion ended the run; 2 if the run was refused; 124 after --timeout or
    --await-timeout; 126 if the guest cannot continue, or if the daemon or a device of this process failed. SIGINT,
    SIGTERM and SIGHUP also delete the VM.
    """
    from irqchip_client.vmm.run import local_devices, make_memory, shared_memory, time_limit

    image = kernel or firmware
    if image is None:
        raise click.UsageError("no kernel and no firmware is given: give either --kernel FILE or --firmware FILE")
    if kernel and firmware:
        raise click.UsageError("a kernel and firmware are given: give either --kernel FILE or --firmware FILE")
    if len(files) > len(contents := dict(files)):
        raise click.UsageError("--fw-cfg gives one NAME twice: leave one out")
    wanted = Wanted(arch, cpu, kernel, firmware, vcpus, int(gic), without, added, disks, contents)
    ended: list[int] = []  # the exit status, once the run has ended
    running: list[Vcpus[Any]] = []

    def end(status: int) -> None:
        ended.append(status)
        for one in running:
            one.stop()

    try:
        with ExitStack() as stack:
            received = stack.enter_context(_ended_by_signals(running, end))
            machine = choose_machine(wanted)
            if machine.notice:
                click.echo(machine.notice, err=True)
            reachable = is_named() or listen is not None or bool(awaited)
            ram = stack.enter_context(make_memory(memory << 20, machine.ram, shared=reachable))
            start = machine.load(ram, append, None if initrd is None else initrd.read_bytes())
            client = stack.enter_context(_connect(listen, bool(awaited)))
            vm = stack.enter_context(machine.create(client, name))
            stack.enter_context(shared_memory(vm, ram))
            devices = stack.enter_context(machine.devices(end, ram))
            host = stack.enter_context(local_devices(vm, devices, ram))
            exits = stack.enter_context(shown_exits(vm, _name_of(client))) if stats else None
            running_vcpus = stack.enter_context(machine.vcpus(ram, vm, host, end, exits))
            host.on_failure = running_vcpus.stop
            running.append(running_vcpus)
            if received:  # Python drops an exception that a signal's handler raises in a finalizer
                raise _Ended
            if sys.stdin is not None and sys.stdin.isatty() and "serial" not in without:
                click.echo(f"VM {vm.name} runs {image.name} on {machine.cpu}; Ctrl-] ends it\r", err=True)
            over = stack.enter_context(time_limit(running_vcpus, timeout))
            _wait_for(vm, awaited, await_timeout, lambda: bool(ended) or over.is_set())
            if not ended and not over.is_set():
                machine.describe(ram, vm, host)
                if start is not None:
                    running_vcpus.start(start)
                running_vcpus.run()
            if host.failure is not None:
                raise host.failure
    except irqchip_client.GuestError as error:
        if not ended:  # Unicorn executes a block to its end, also behind the instruction that ended the run.
            raise _CanNotGoOn(f"{error.message}{machine.about}") from error
    except (irqchip_client.SessionClosed, irqchip_client.NotFound) as error:
        if not running or not isinstance(error.__cause__ or error, irqchip_client.NotFound):
            raise _failure(running, error) from error
        ended.append(0)  # the VM's deletion ends the run
    except (irqchip_client.IrqchipError, ImportError, OSError) as error:
        raise _failure(running, error) from error
    if not ended and over.is_set():
        raise _TimeIsUp(f"the guest has not ended within {timeout:g} s, which --timeout allows")
    sys.exit(ended[0] & 0xFF if ended else 0)


def _connect(listen: str | None, awaits: bool) -> irqchip_client.Client:
    """The daemon that the user has named, or else one in this process."""
    if is_named():
        if listen is not None:
            raise click.UsageError("--listen is for a run without --target: devices connect to that daemon")
        return connect()
    if listen is None and not awaits:
        return irqchip_client.embedded()
    path = irqchip_client.default_socket() if listen is None else os.path.abspath(listen)
    try:
        client = irqchip_client.embedded(path)
    except irqchip_client.IrqchipError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        error.message += f"; --listen PATH chooses another, and --target unix://{path} uses the daemon that is there"
        raise
    sys.setswitchinterval(SWITCH_INTERVAL)
    return client


def _name_of(client: irqchip_client.Client) -> str:
    """The daemon's name in the table of exits."""
    return "the daemon here" if client.target.startswith("embedded:") else "the daemon"


def _failure(running: list[Vcpus[Any]], error: Exception) -> click.ClickException:
    """The error for a failure of the daemon, of this machine or of a device, before the guest began or after."""
    return _CanNotGoOn(str(error)) if running else _Refused(str(error))


@contextmanager
def _ended_by_signals(running: list[Vcpus[Any]], end: Callable[[int], None]) -> Iterator[list[int]]:
    """A signal of ENDING ends the body, and after the clean-up the process. Gives the signals that came."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        for each in ENDING:
            signal.signal(each, signal.SIG_DFL)
        if not running:
            raise _Ended
        end(0)

    before = {number: signal.signal(number, receive) for number in ENDING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if received else handler)
        if received:
            signal.raise_signal(received[0])  # so that the process ends by the signal
            sys.exit(128 + received[0])  # a container's first process outlives it


def _wait_for(vm: irqchip_client.Vm, clients: tuple[str, ...], timeout: float, over: Callable[[], bool]) -> None:
    """Waits until the clients have come, or the run has ended. _TimeIsUp after `timeout` seconds."""
    began = time.monotonic()
    announced = False
    before: dict[str, tuple[irqchip_client.RegionInfo, ...]] = {}
    while True:
        regions = {session.client: session.regions for session in vm.info().sessions if session.regions}
        # A client that claims several regions has all of them when two looks find the same ones.
        missing = {name for name in clients if name not in regions or regions[name] != before.get(name)}
        before = regions
        if not missing or over():
            return
        waited, names = time.monotonic() - began, ", ".join(sorted(missing))
        if waited > timeout:
            raise _TimeIsUp(
                f"{names}: no such client has claimed ports or addresses of VM {vm.name} within {timeout:g} s; "
                "start it (`irqchipctl device` starts devices), or allow more with --await-timeout"
            )
        if not announced and waited > SILENCE:
            announced = True
            click.echo(f"VM {vm.name} waits for {names}; Ctrl-] ends it\r", err=True)
        time.sleep(0.02)

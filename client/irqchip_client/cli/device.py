"""device: a device in a process of its own."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

import irqchip_client

from ._group import command
from .device_models import find_model, make, read_parameters
from .files import write_file

if TYPE_CHECKING:
    from irqchip_client.devices import Device

log = logging.getLogger("irqchip_client.devices")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class _Size(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    name = "size"
    example = "10M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})([KMG]?)", value.upper())
        size = int(found[1]) * _UNITS[found[2]] if found else 0
        if size < 512 or size % 512:
            self.fail(f"{value!r:.100} is no size: a multiple of 512 bytes, as 1048576, 64K, 10M or 1G", param, ctx)
        return size


@command(example="Rtc --vm vm1")
@click.argument("model", metavar="MODEL")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--vm", "vm", metavar="NAME", required=True, help="The VM of the device; `irqchipctl list` shows the VMs."
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long to wait until the VM exists and has an irqchip, in seconds.",
)
@click.option("--name", metavar="TEXT", help="The client name of the device's Session. [default: the model's name]")
@click.option(
    "--listen",
    metavar="PATH",
    help="For Uart, I8042 and VirtioConsole: listen on this unix socket for a terminal, one at a time. While none is"
    " connected, the last 64 KiB of output are kept. [default: use this terminal; Ctrl-] ends the command]",
)
@click.option(
    "--create",
    type=_Size(),
    metavar="SIZE",
    help="For BlockDevice and VirtioBlock: if the file of path= does not exist, create it with this size, for example"
    " 64K, 10M or 1G.",
)
@click.option("--delete-vm", is_flag=True, help="For DebugExit and PowerManagement: delete the VM at the guest's end.")
@click.option(
    "--state",
    "state_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Restore the device from this file if it exists, and save the device to it at the end.",
)
@click.pass_context
def device(
    context: click.Context,
    model: str,
    parameters: tuple[str, ...],
    vm: str,
    wait: float,
    name: str | None,
    listen: str | None,
    create: int | None,
    delete_vm: bool,
    state_file: str | None,
) -> None:
    """Run a device for a VM.

    The device runs until SIGTERM, Ctrl-C or the VM's deletion. MODEL is Uart, Rtc, I8042, BlockDevice, Ide, Crtc,
    VirtioBlock, VirtioConsole, DebugExit or PowerManagement; or a class of your own in a file or module, for example
    my_device.py:Timer. NAME=VALUE is an argument of its constructor, for example path=disk.img, read_only=true or
    base=0x620.

    For a DebugExit, the exit status is (value << 1) | 1, where value is the value that the guest wrote; for a
    PowerManagement, 0 when the guest turns the machine off. For an I8042 and a PowerManagement, the command resets the
    VM when the guest resets the machine.
    """
    from irqchip_client import devices
    from irqchip_client.devices.failures import describe_failure

    logging.basicConfig(level="INFO", format="%(message)s")
    cls = find_model(model)
    machine = _Machine(vm, context.obj)
    _check_option("--listen", listen, cls, devices.Uart, devices.I8042, devices.VirtioConsole)
    _check_option("--create", create, cls, devices.BlockDevice, devices.VirtioBlock)
    _check_option("--delete-vm", delete_vm, cls, devices.DebugExit, devices.PowerManagement)
    with ExitStack() as stack:
        ours = _given(cls, machine)
        values = read_parameters(cls, parameters, ours)
        if create is not None:
            _create(str(values["path"]), create)
        stack.enter_context(_other_end(ours, values, listen))
        made = make(cls, {**ours, **values})
        if name is not None:
            made.name = name
        if state_file is not None:
            _restore(made, state_file)
        never_run = made.host
        try:
            devices.run_device(made, vm, target=context.obj, start_timeout=wait)
        except Exception as error:
            if (failure := describe_failure(error)) is not None:
                raise click.ClickException(failure) from error
            if state_file is not None and made.host is not never_run:  # the daemon has ended
                _save(made, state_file)
            raise
        if state_file is not None and made.host is not never_run:
            _save(made, state_file)
    if machine.status is not None:
        if delete_vm:
            machine.delete()
        sys.exit(machine.status & 0xFF)


class _Machine:
    """The effects of devices on their VM."""

    def __init__(self, vm: str, target: str | None) -> None:
        self._vm = vm
        self._target = target
        self.status: int | None = None

    def end(self, status: int) -> None:
        """Ends the run: the guest has ended."""
        if self.status is None:
            self.status = status
            log.info("the guest has ended with status %d", status)
            leave()

    def reset(self) -> None:
        """Resets the VM for the guest."""
        try:
            with irqchip_client.connect(self._target) as client:
                client.vm(self._vm).reset(irqchip_client.ResetReason.GUEST)
            log.info("the guest has reset VM %r", self._vm)
        except irqchip_client.IrqchipError as error:
            log.warning("the guest's reset of VM %r failed: %s", self._vm, error)

    def delete(self) -> None:
        """Deletes the VM, which is no longer needed."""
        with suppress(irqchip_client.NotFound), irqchip_client.connect(self._target) as client:
            client.delete_vm(self._vm)


def leave() -> None:
    """Ends this process as Ctrl-C does, after the access under way."""
    os.kill(os.getpid(), signal.SIGINT)


def _check_option(option: str, given: object, cls: type[Device], *models: type[Device]) -> None:
    if given and not issubclass(cls, models):
        *others, last = (model.__name__ for model in models)
        whose = f"{', '.join(others)} and {last}" if others else last
        raise click.BadParameter(
            f"this is an option of {whose}, and not of {cls.__name__}: leave it out", param_hint=option
        )


def _given(cls: type[Device], machine: _Machine) -> dict[str, Any]:
    """The arguments that the command itself gives a model, except its other end."""
    from irqchip_client.devices import I8042, DebugExit, PowerManagement, Uart, VirtioConsole

    given: dict[str, Any] = {}
    if issubclass(cls, Uart | VirtioConsole):
        given |= {"output": None, "input_fd": None}
    if issubclass(cls, I8042):
        given |= {"input_fd": None, "reset": machine.reset}
    if issubclass(cls, DebugExit):
        given |= {"ended": machine.end}
    if issubclass(cls, PowerManagement):
        given |= {"power_off": partial(machine.end, 0), "reset": machine.reset}
    takes = inspect.signature(cls).parameters
    return {name: value for name, value in given.items() if name in takes}


@contextmanager
def _other_end(ours: dict[str, Any], values: dict[str, Any], path: str | None) -> Iterator[None]:
    """Connects a model's other end to a socket or to this terminal, unless the user has given one."""
    from irqchip_client.devices.listen import listen
    from irqchip_client.devices.terminal import terminal_input

    ends = (ours.keys() & {"input_fd", "output"}) - values.keys()
    if ends and path is not None:
        try:
            descriptor = listen(path)
        except OSError as error:
            raise click.BadParameter(f"{path}: {error.strerror or error}", param_hint="--listen") from error
        ours |= dict.fromkeys(ends, descriptor)
        yield
        return
    if "output" in ends:
        ours["output"] = _nowhere if sys.stdout is None else sys.stdout.fileno()
    if "input_fd" not in ends:
        yield
        return
    if sys.stdin is not None and sys.stdin.isatty():
        log.info("this terminal is the device's other end: Ctrl-] leaves")
    with terminal_input(leave) as ours["input_fd"]:
        yield


def _nowhere(data: bytes) -> None:
    """The output if stdout is closed."""


def _create(path: str, size: int) -> None:
    try:
        with open(path, "xb") as image:
            image.truncate(size)
    except FileExistsError:
        pass


def _restore(made: Device, path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            made.restore(json.load(file))
    except FileNotFoundError:
        pass
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        raise click.ClickException(
            f"{path} is no device's state: {error}; name another file, or remove this one"
        ) from error
    except irqchip_client.InvalidArgument as error:
        raise click.ClickException(f"{path}: {error.message}; name another file, or remove this one") from error


def _save(made: Device, path: str) -> None:
    write_file(path, json.dumps(made.save()).encode() + b"\n")

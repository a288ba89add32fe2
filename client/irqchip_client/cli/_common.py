"""The common parts of the commands: numbers, and the connection.

The SDK is imported through the package, which loads it at its first use, so that --help does not wait for gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

import irqchip_client

from ._group import SHARED_CLIENT, VM, command

__all__ = [
    "COUNT",
    "GSI",
    "LONG",
    "PORT",
    "VCPU",
    "WORD",
    "command",
    "connect",
    "is_named",
    "number",
    "pass_client",
    "pass_vm",
    "size_option",
    "vcpu_option",
    "vms_there_are",
    "with_others",
]

P = ParamSpec("P")
T = TypeVar("T")

_OTHER_ARCHITECTURE = re.compile(r" is an (\w+) VM, and \w+ is for other architectures")
# The most VMs to compare with an unknown name, and the most to show.
_COMPARED, _SHOWN = 1000, 8
_PATIENCE = 1.0  # seconds to wait after Tab


class _Number(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    """A number within a range, decimal or hexadecimal."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.example = least or 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            number = int(value, 0)
        except ValueError:
            self.fail(f"{value!r:.100} is no number: write 16, 0x10 or 0b10000{_as_hexadecimal(value)}", param, ctx)
        if not self.least <= number <= self.most:
            show = hex if self.most > _DECIMAL else str
            self.fail(f"{value:.100} is out of range: use {self.least} to {show(self.most)}", param, ctx)
        return number


def _as_hexadecimal(text: str) -> str:
    """The advice for 3f8, 3f8h or 010."""
    digits = text.lower().removesuffix("h")
    if not 0 < len(digits) <= 16 or set(digits) - set("0123456789abcdef"):
        return ""
    return f"; 0x{digits} is hexadecimal"


_DECIMAL = 1_000_000_000  # Up to this, a range's maximum is shown in decimal.


def number(least: int, most: int) -> _Number:
    """A type for a number within a range."""
    return _Number(least, most)


COUNT = number(1, _DECIMAL)
PORT = number(0, 0xFFFF)
WORD = number(0, 0xFFFF_FFFF)
LONG = number(0, 0xFFFF_FFFF_FFFF_FFFF)
GSI = WORD
VCPU = WORD

vcpu_option = click.option(
    "--vcpu", type=VCPU, default=0, show_default=True, metavar="ID", help="The vCPU that does this."
)


def size_option(default: int, *sizes: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The width of a guest's access."""
    return click.option(
        "--size",
        type=click.Choice([str(size) for size in sizes]),
        default=str(default),
        show_default=True,
        help="The number of bytes.",
    )


def pass_client(function: Callable[Concatenate[irqchip_client.Client, P], T]) -> Callable[P, T]:
    """Gives a command a Client of the target, which is closed when the command ends."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(connect(), *args, **kwargs)

    return made


def _complete_vm(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The VMs to complete at Tab, if a daemon answers at once."""
    target = context.find_root().params.get("target")
    with suppress(irqchip_client.IrqchipError), irqchip_client.connect(target, timeout=_PATIENCE) as client:
        return [vm.name for vm in client.vms() if vm.name.startswith(incomplete)]
    return []


def pass_vm(function: Callable[Concatenate[irqchip_client.Vm, ...], T]) -> Callable[..., T]:
    """Gives a command an argument VM, and the SDK's Vm for it."""

    @click.argument(VM, metavar="VM", shell_complete=_complete_vm)
    @wraps(function)
    def made(*args: Any, vm_name: str, **kwargs: Any) -> T:
        client = connect()
        try:
            return function(client.vm(vm_name), *args, **kwargs)
        except irqchip_client.NotFound as error:
            if "has no vCPU" in error.message:
                more = f"{error.message}; `irqchipctl create --vcpus N` makes a VM with N"
                raise irqchip_client.NotFound(error.errno, more) from None
            raise with_others(client, vm_name, error) from None
        except irqchip_client.IrqchipError as error:
            raise _with_command(error) from None

    return made


# The alternative to a command that a VM's architecture lacks.
_INSTEAD = {
    ("arm64", "msr-read"): "use `irqchipctl sysreg-read`",
    ("arm64", "msr-write"): "use `irqchipctl sysreg-write`",
    ("arm64", "ack"): "read ICC_IAR1_EL1 with `irqchipctl sysreg-read`, or a GICv2's GICC_IAR with `irqchipctl read`",
    ("s390", "ack"): "`irqchipctl regs` shows what is pending",
    ("x86", "sysreg-read"): "use `irqchipctl msr-read`",
    ("x86", "sysreg-write"): "use `irqchipctl msr-write`",
}


def _with_command(error: irqchip_client.IrqchipError) -> irqchip_client.IrqchipError:
    """Adds advice to the error about an operation of another architecture."""
    found = _OTHER_ARCHITECTURE.search(error.message)
    instead = None if found is None else _INSTEAD.get((found[1], str(click.get_current_context().info_name)))
    if instead is None:
        return error
    return type(error)(error.errno, f"{error.message}: {instead}")


def with_others(client: irqchip_client.Client, name: str, error: irqchip_client.NotFound) -> Exception:
    """Adds the names of the existing VMs to the error about an unknown VM."""
    if not error.message.startswith("there is no VM"):
        return error
    try:
        names = [vm.name for vm in client.vms()]
    except irqchip_client.IrqchipError:
        return error
    if name in names:  # Something else was not found.
        return error
    return irqchip_client.NotFound(error.errno, f"{error.message}; {vms_there_are(name, names)}")


def vms_there_are(name: str, names: Sequence[str]) -> str:
    """A suggestion for an unknown VM's name."""
    if not names:
        return "there are no VMs: `irqchipctl create` makes one"
    from difflib import get_close_matches

    compared = {one.lower(): one for one in names[:_COMPARED]}
    if close := get_close_matches(name.lower(), compared, 3):
        return f"did you mean {' or '.join(compared[one] for one in close)}? `irqchipctl list` shows all"
    some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"there {'is' if len(names) == 1 else 'are'} {some}"


def connect() -> irqchip_client.Client:
    """A Client of the target, which is closed when the command ends; in a shell, the shell's."""
    context = click.get_current_context()
    shared: irqchip_client.Client | None = context.find_root().meta.get(SHARED_CLIENT)
    if shared is not None and context.obj in (None, shared.target):
        return shared
    return context.with_resource(irqchip_client.connect(context.obj))


def is_named() -> bool:
    """Whether the user has named a daemon, or the command runs in a shell, which has a daemon."""
    context = click.get_current_context()
    return context.obj is not None or SHARED_CLIENT in context.find_root().meta

"""Lines on a command line: a GSI, or a line of an arm64 VM by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NoReturn

import click

import irqchip_client

from ._common import GSI

_LAST_GSI: Final = 4095
_FIRST_NUMBER: Final = 1 << 16  # irq:1, the least of KVM_IRQ_LINE's numbers on arm64 that can be no GSI


class NamedLine(int):
    """A line of an arm64 VM that was written by its name."""

    text = ""


class _LineType(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    """A GSI, or a line of an arm64 VM: spi:4, ppi:0:27, irq:0, fiq:0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not isinstance(value, str) or ":" not in value:
            return GSI.convert(value, param, ctx)
        kind, *numbers = value.lower().split(":")
        # Not above: this import loads gRPC, for which --help does not wait.
        from irqchip_client.arm64 import irq, ppi, spi

        parts = _numbers(numbers)
        match kind, parts:
            case "spi", [number] if 0 <= number < 988:
                line = spi(number)
            case "ppi", [vcpu, intid] if 0 <= vcpu < 512 and 16 <= intid < 32:
                line = ppi(vcpu, intid)
            case "irq" | "fiq", [vcpu] if 0 <= vcpu < 512:
                line = irq(vcpu) + (kind == "fiq")
            case _:
                self._refuse(value, param, ctx)
        named = NamedLine(line)
        named.text = value.lower()
        return named

    def _refuse(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
        self.fail(
            f"{value!r:.100} is no line: write spi:N with N from 0 to 987, ppi:VCPU:INTID with INTID from 16 to 31,"
            " irq:VCPU or fiq:VCPU",
            param,
            ctx,
        )


LINE: Final = _LineType()


class _WatchedType(_LineType):
    """A line whose events are printed: a GSI of at most _LAST_GSI, or an arm64 VM's line."""

    example = "1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        line = super().convert(value, param, ctx)
        if _LAST_GSI < line < _FIRST_NUMBER:
            self.fail(
                f"{value:.100} is out of range: use 0 to {_LAST_GSI}, or an arm64 VM's line, as spi:4", param, ctx
            )
        return line


WATCHED: Final = _WatchedType()


def _numbers(texts: Iterable[str]) -> list[int]:
    try:
        return [int(text, 0) for text in texts]
    except ValueError:
        return []


def check_line(info: irqchip_client.VmInfo, line: int) -> bool:
    """Returns whether a VM is an arm64 VM. Refuses a line that only an arm64 VM has for any other VM."""
    is_arm64 = info.architecture is irqchip_client.Architecture.ARM64
    if (isinstance(line, NamedLine) or line >= _FIRST_NUMBER) and not is_arm64:
        raise click.ClickException(
            f"VM {info.name!r} is of {info.architecture.name.lower()}, and only an arm64 VM has such lines:"
            " write a GSI, as 4"
        )
    return is_arm64


def asserted(info: irqchip_client.VmInfo, lines: Iterable[int]) -> str:
    """The lines that a line source holds high, in the words of the VM's architecture."""
    if info.architecture is irqchip_client.Architecture.ARM64:
        from irqchip_client.arm64 import line_name

        return f"asserted lines {' '.join(map(line_name, lines)) or '(none)'}"
    return f"asserted GSIs {' '.join(map(str, lines)) or '(none)'}"

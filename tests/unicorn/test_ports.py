"""Which ports a program may use: the SDM vol. 1 chapter 19.5."""

from __future__ import annotations

from dataclasses import replace
from struct import pack

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn.x86.delivery import VM
from irqchip_client.unicorn.x86.ports import PortAccess, decode_port_access, may_access
from tests.unicorn.test_delivery import TSS, Cpu

BITMAP = 0x68


@pytest.fixture
def program() -> Cpu:
    """A program in ring 3 whose TSS allows ports 10h to 13h."""
    cpu = Cpu()
    cpu.state.cpl = 3
    cpu.state.tr = replace(cpu.state.tr, limit=BITMAP + 4)
    cpu.write(TSS + 0x66, pack("<H", BITMAP))
    cpu.write(TSS + BITMAP, bytes([0xFF, 0xFF, 0xF0, 0xFF, 0xFF]))
    return cpu


def test_iopl_allows_every_port(program: Cpu) -> None:
    assert not may_access(program, 0x21, 1)
    program.flags |= 3 << 12
    assert may_access(program, 0x21, 1)
    program.flags |= VM  # the bitmap decides in virtual-8086 mode
    assert not may_access(program, 0x21, 1)


def test_ring_0_may_use_every_port(program: Cpu) -> None:
    program.state.cpl = 0
    assert may_access(program, 0x21, 1)


@pytest.mark.parametrize(
    ("port", "size", "allowed"),
    [
        *((0x10, 1, True), (0x10, 4, True), (0x12, 2, True), (0x13, 2, False), (0x0F, 2, False), (0x14, 1, False)),
        *((0x20, 1, False), (0x28, 1, False), (0xFFFF, 4, False)),  # behind the bitmap
    ],
)
def test_the_bitmap_allows_each_byte(program: Cpu, port: int, size: int, allowed: bool) -> None:
    assert may_access(program, port, size) is allowed


def test_a_tss_without_a_bitmap_allows_none(program: Cpu) -> None:
    program.state.tr = replace(program.state.tr, limit=0x60)
    assert not may_access(program, 0x10, 1)
    program.state.tr = replace(program.state.tr, limit=BITMAP + 4, access=0x8300)  # of 16 bits
    assert not may_access(program, 0x10, 1)


@pytest.mark.parametrize(
    ("code", "prefixes", "wide", "access"),
    [
        ("e421", "", True, PortAccess(0x21, 1)),
        ("e721", "", True, PortAccess(0x21, 4)),
        ("e721", "66", True, PortAccess(0x21, 2)),
        ("ed", "", False, PortAccess(None, 2)),
        ("ed", "66", False, PortAccess(None, 4)),
        ("6e", "f3", True, PortAccess(None, 1)),
        ("6f", "f366", True, PortAccess(None, 2)),
        ("90", "", True, None),
        ("", "", True, None),
        ("e4", "", True, None),
    ],
)
def test_instructions(code: str, prefixes: str, wide: bool, access: PortAccess | None) -> None:
    assert decode_port_access(bytes.fromhex(code), bytes.fromhex(prefixes), wide=wide) == access

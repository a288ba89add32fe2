"""Trapped instructions, and others that look similar."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn.x86.traps import Trap, decode, is_iret


@pytest.mark.parametrize(
    ("code", "trap", "register"),
    [
        ("f4", Trap.HLT, 0),
        ("0f30", Trap.WRMSR, 0),
        ("0f31", Trap.RDTSC, 0),
        ("0f32", Trap.RDMSR, 0),
        ("480f32", Trap.RDMSR, 0),
        ("f3f4", Trap.HLT, 0),
        ("440f20c0", Trap.READ_CR8, 0),
        ("450f22c1", Trap.WRITE_CR8, 9),
        ("4d0f20c7", Trap.READ_CR8, 15),
        ("66cd21", Trap.INT, 0),
        ("f3cc", Trap.INT, 0),
    ],
)
def test_traps(code: str, trap: Trap, register: int) -> None:
    assert decode(bytes.fromhex(code), is_64bit=True) == (trap, register)


@pytest.mark.parametrize("code", ["90", "0f20c0", "410f20c0", "440f20c8", "b8f4", "0f33", ""])
def test_other_instructions(code: str) -> None:
    assert decode(bytes.fromhex(code), is_64bit=True) is None


def test_cr8_exists_in_64_bit_mode_alone() -> None:
    assert decode(bytes.fromhex("44"), is_64bit=False) is None
    assert decode(bytes.fromhex("440f22c0"), is_64bit=False) is None


def test_iret_may_have_prefixes() -> None:
    assert is_iret(bytes.fromhex("cf90"), is_64bit=False)
    assert is_iret(bytes.fromhex("6648cf"), is_64bit=True)
    assert not is_iret(bytes.fromhex("48cf"), is_64bit=False)
    assert not is_iret(b"", is_64bit=True)

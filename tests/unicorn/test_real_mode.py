"""Guests in real mode: accesses, and the PIC's interrupts through the vector table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.waiting import eventually

if TYPE_CHECKING:
    from .machine import Machine

DEVICE = 0x300
COUNT, FLAG = 0x500, 0x502

IO = bytes.fromhex(
    "ba0003"  # 7c00: mov dx,0x300
    "b05a"  # 7c03: mov al,0x5a
    "ee"  # 7c05: out dx,al
    "ed"  # 7c06: in ax,dx
    "a30005"  # 7c07: mov 0x500,ax
    "66ed"  # 7c0a: in eax,dx
    "66a30405"  # 7c0c: mov 0x504,eax
    "fc"  # 7c10: cld
    "be257c"  # 7c11: mov si,0x7c25
    "b90400"  # 7c14: mov cx,0x4
    "f36e"  # 7c17: rep outs dx,BYTE ds:[si]
    "bf1005"  # 7c19: mov di,0x510
    "b90300"  # 7c1c: mov cx,0x3
    "f36d"  # 7c1f: rep ins WORD es:[di],dx
    "e6f4"  # 7c21: out 0xf4,al
    "ebfe"  # 7c23: jmp 7c23
    "01020304"  # 7c25: the bytes that are written
)
SPIN = bytes.fromhex(
    "fb"  # 7c00: sti
    "ebfe"  # 7c01: jmp 7c01
)
HALT = bytes.fromhex(
    "fb"  # 7c00: sti
    "f4"  # 7c01: hlt
    "ebfd"  # 7c02: jmp 7c01
)
MASKED = bytes.fromhex(
    "803e020500"  # 7c00: cmp BYTE 0x502,0x0
    "74f9"  # 7c05: je 7c00
    "fb"  # 7c07: sti
    "ebfe"  # 7c08: jmp 7c08
)
WINDOWS = bytes.fromhex(
    "fa"  # 7c00: cli
    "fb"  # 7c01: sti
    "fa"  # 7c02: cli, in the shadow of sti
    "ff060205"  # 7c03: inc WORD 0x502
    "fb"  # 7c07: sti
    "90"  # 7c08: nop, in the shadow
    "fa"  # 7c09: cli, not any more
    "ebf4"  # 7c0a: jmp 7c00
)
INTERRUPTED_THEN_BUSY = bytes.fromhex(
    "fb"  # 7c00: sti
    "803e000500"  # 7c01: cmp BYTE 0x500,0x0
    "74f9"  # 7c06: je 7c01
    "b9ffff"  # 7c08: mov cx,0xffff
    "e2fe"  # 7c0b: loop 7c0b
    "e6f4"  # 7c0d: out 0xf4,al
    "ebfe"  # 7c0f: jmp 7c0f
)
HANDLER = bytes.fromhex(
    "ff060005"  # 7d00: inc WORD 0x500
    "50"  # 7d04: push ax
    "b020"  # 7d05: mov al,0x20
    "e620"  # 7d07: out 0x20,al
    "58"  # 7d09: pop ax
    "cf"  # 7d0a: iret
)
# The same, but first stores its return address.
WINDOW_HANDLER = (
    bytes.fromhex(
        "5b"  # 7d00: pop bx
        "891e0405"  # 7d01: mov WORD 0x504,bx
        "53"  # 7d05: push bx
    )
    + HANDLER
)


def test_in_and_out_with_their_string_forms_reach_a_local_device(machine: Machine) -> None:
    machine.start_real(IO)
    machine.cpu.run()
    assert machine.devices.written == [(DEVICE, 0x5A, 1), *((DEVICE, value, 1) for value in (1, 2, 3, 4))]
    assert machine.memory.read(0x500, 8) == bytes.fromhex("0101 0000 02020202")
    assert machine.memory.read(0x510, 6) == bytes.fromhex("0303 0404 0505")


def test_accesses_to_the_daemons_ports_go_to_the_daemon(machine: Machine) -> None:
    machine.start_real(
        bytes.fromhex(
            "b0a5"  # 7c00: mov al,0xa5
            "e621"  # 7c02: out 0x21,al
            "b000"  # 7c04: mov al,0x0
            "e421"  # 7c06: in al,0x21
            "a20005"  # 7c08: mov 0x500,al
            "e480"  # 7c0b: in al,0x80, unclaimed
            "a20105"  # 7c0d: mov 0x501,al
            "e6f4"  # 7c10: out 0xf4,al
            "ebfe"  # 7c12: jmp 7c12
        )
    )
    machine.cpu.run()
    assert machine.memory.read(0x500, 2) == b"\xa5\xff"
    assert machine.daemon.pio_read(0x21).data == 0xA5


@pytest.mark.parametrize("guest", [SPIN, HALT], ids=["spinning", "halted"])
def test_every_edge_interrupts_a_guest(machine: Machine, guest: bytes) -> None:
    machine.vector(0x21, 0x7D00, HANDLER)
    machine.start_real(guest)
    machine.initialise_pic()
    with machine.running(), machine.vm.session("keyboard") as keyboard:
        line = keyboard.line(1)
        for count in range(1, 201):
            line.pulse()
            eventually(lambda count=count: machine.word(COUNT) & 0xFFFF == count)  # type: ignore[misc]


def test_a_masked_interrupt_comes_when_the_guest_unmasks_it(machine: Machine) -> None:
    machine.vector(0x21, 0x7D00, HANDLER)
    machine.start_real(MASKED)
    machine.initialise_pic()
    with machine.running(), machine.vm.session("keyboard") as keyboard:
        keyboard.line(1).pulse()
        time.sleep(0.05)
        assert machine.word(COUNT) & 0xFFFF == 0
        machine.memory.write(FLAG, b"\x01")
        eventually(lambda: machine.word(COUNT) & 0xFFFF == 1)


def test_the_shortest_interrupt_window_is_used_and_the_shadow_of_sti_is_not(machine: Machine) -> None:
    machine.vector(0x21, 0x7D00, WINDOW_HANDLER)
    machine.start_real(WINDOWS)
    machine.initialise_pic()
    with machine.running(), machine.vm.session("keyboard") as keyboard:
        for count in range(1, 51):
            keyboard.line(1).pulse()
            eventually(lambda count=count: machine.word(COUNT) & 0xFFFF == count)  # type: ignore[misc]
            assert machine.word(0x504) & 0xFFFF == 0x7C09


def test_blocks_behind_an_interrupt_run_without_a_stop(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the handler accesses nothing."""
    machine.vector(
        0x21,
        0x7D00,
        bytes.fromhex(
            "ff060005"  # 7d00: inc WORD 0x500
            "cf"  # 7d04: iret
        ),
    )
    machine.start_real(INTERRUPTED_THEN_BUSY)
    machine.initialise_pic()
    run, runs = machine.cpu._engine.run, 0

    def counted() -> object:
        nonlocal runs
        runs += 1
        assert runs < 10_000  # of more than 65,535 blocks
        return run()

    monkeypatch.setattr(machine.cpu._engine, "run", counted)
    with machine.vm.session("keyboard") as keyboard:
        keyboard.line(1).pulse()
        machine.cpu.run()
    assert machine.word(COUNT) & 0xFFFF == 1


def test_software_interrupts_go_through_the_vector_table_and_return_behind(machine: Machine) -> None:
    machine.vector(0x80, 0x7D00, bytes.fromhex("ff060005 cf"))  # inc WORD 0x500; iret
    machine.vector(3, 0x7D10, bytes.fromhex("ff060205 cf"))
    machine.vector(4, 0x7D20, bytes.fromhex("ff060405 cf"))
    machine.vector(0, 0x7D30, bytes.fromhex("ff060605 b90100 cf"))  # inc WORD 0x506; mov cx,1; iret
    machine.start_real(
        bytes.fromhex(
            "cd80"  # 7c00: int 0x80
            "cc"  # 7c02: int3
            "b07f"  # 7c03: mov al,0x7f
            "0401"  # 7c05: add al,1
            "ce"  # 7c07: into
            "31d2"  # 7c08: xor dx,dx
            "31c9"  # 7c0a: xor cx,cx
            "f7f1"  # 7c0c: div cx
            "e6f4"  # 7c0e: out 0xf4,al
            "ebfe"  # 7c10: jmp 7c10
        )
    )
    machine.cpu.run()
    assert machine.memory.read(0x500, 8) == bytes.fromhex("0100 0100 0100 0100")


def test_a_handler_in_another_segment_returns(machine: Machine) -> None:
    machine.memory.write(0x80 * 4, bytes.fromhex("0001 0020"))  # 2000:0100
    machine.memory.write(0x20100, bytes.fromhex("8cc8 a30005 cf"))  # mov ax,cs; mov WORD 0x500,ax; iret
    machine.start_real(
        bytes.fromhex(
            "cd80"  # 7c00: int 0x80
            "8cc8"  # 7c02: mov ax,cs
            "a30205"  # 7c04: mov 0x502,ax
            "e6f4"  # 7c07: out 0xf4,al
            "ebfe"  # 7c09: jmp 7c09
        )
    )
    machine.cpu.run()
    assert machine.memory.read(0x500, 4) == bytes.fromhex("0020 0000")

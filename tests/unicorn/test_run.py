"""run() and stop(), NMI, and many interrupts."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

import pytest

from irqchip_client import Busy, InvalidArgument, SessionClosed
from tests.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from .machine import Machine

HANDLER = 0x1800
COUNTER = 0x600

TIMER = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "ea1a1000000800"  # 1013: jmp 0x8:0x101a
    "bb0000e0fe"  # 101a: mov ebx,0xfee00000
    "c783f0000000ff010000"  # 101f: mov DWORD [ebx+0xf0],0x1ff
    "c783e00300000b000000"  # 1029: mov DWORD [ebx+0x3e0],0xb
    "c7832003000040000000"  # 1033: mov DWORD [ebx+0x320],0x40
    "c7838003000050c30000"  # 103d: mov DWORD [ebx+0x380],0xc350
    "fb"  # 1047: sti
    "f4"  # 1048: hlt
    "ebfd"  # 1049: jmp 1048
)
TICK = bytes.fromhex(
    "ff0500060000"  # 1800: inc DWORD 0x600
    "c705b000e0fe00000000"  # 1806: mov DWORD 0xfee000b0,0x0
    "813d00060000d0070000"  # 1810: cmp DWORD 0x600,0x7d0
    "730b"  # 181a: jae 1827
    "c7058003e0fe50c30000"  # 181c: mov DWORD 0xfee00380,0xc350
    "cf"  # 1826: iret
    "e6f4"  # 1827: out 0xf4,al
    "cf"  # 1829: iret
)
NMI = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "c7050406000001000000"  # 1013: mov DWORD 0x604,0x1
    "ebfe"  # 101d: jmp 101d
)
NMI_HANDLER = bytes.fromhex(
    "ff0500060000"  # 1800: inc DWORD 0x600
    "833d0806000000"  # 1806: cmp DWORD 0x608,0x0
    "74f7"  # 180d: je 1806
    "cf"  # 180f: iret
)
SELF_IPI = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "c705f000e0feff010000"  # 1013: mov DWORD 0xfee000f0,0x1ff
    "fb"  # 101d: sti
    "c7050003e0fe40400400"  # 101e: mov DWORD 0xfee00300,0x44040
    "eb00"  # 1028: jmp 102a
    "90"  # 102a: nop
    "a100060000"  # 102b: mov eax,ds:0x600
    "a304060000"  # 1030: mov 0x604,eax
    "e6f4"  # 1035: out 0xf4,al
    "ebfe"  # 1037: jmp 1037
)
COUNT = bytes.fromhex(
    "ff0500060000"  # 1800: inc DWORD 0x600
    "c705b000e0fe00000000"  # 1806: mov DWORD 0xfee000b0,0x0
    "cf"  # 1810: iret
)

SPIN, HALT, MASKED_HALT = (bytes.fromhex(code) for code in ("fb ebfe", "fb f4 ebfd", "fa f4 ebfd"))


def test_2000_one_shots_of_the_apic_timer_each_started_by_the_last_ones_handler(machine: Machine) -> None:
    machine.start(TIMER)
    machine.gate(0x40, HANDLER)
    machine.memory.write(HANDLER, TICK)
    started = time.monotonic()
    machine.cpu.run()
    elapsed = time.monotonic() - started
    assert machine.word(COUNTER) == 2000
    assert elapsed >= 0.1  # 50 us each
    state = machine.daemon.lapic()
    assert not any(state.irr)
    assert not any(state.isr)


def test_an_interrupt_that_a_store_causes_comes_before_the_next_block(machine: Machine) -> None:
    machine.start(SELF_IPI)
    machine.gate(0x40, HANDLER)
    machine.memory.write(HANDLER, COUNT)
    machine.cpu.run()
    assert machine.word(0x604) == 1


def test_a_second_nmi_waits_for_the_first_ones_iret(machine: Machine) -> None:
    machine.start(NMI)
    machine.gate(2, HANDLER)
    machine.memory.write(HANDLER, NMI_HANDLER)
    with machine.running():
        eventually(lambda: machine.word(0x604) == 1)
        machine.daemon.nmi()
        eventually(lambda: machine.word(COUNTER) == 1)
        for _ in range(3):  # At most one stays pending.
            machine.daemon.nmi()
            time.sleep(0.02)
        assert machine.word(COUNTER) == 1
        machine.memory.write(0x608, b"\x01")
        eventually(lambda: machine.word(COUNTER) == 2)
        time.sleep(0.02)
        assert machine.word(COUNTER) == 2


SELF_NMI = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "c705f000e0feff010000"  # 1013: mov DWORD 0xfee000f0,0x1ff
    "c7050003e0fe00440000"  # 101d: mov DWORD 0xfee00300,0x4400
    "eb00"  # 1027: jmp 1029
    "eb00"  # 1029: jmp 102b
    "eb00"  # 102b: jmp 102d
    "e6f4"  # 102d: out 0xf4,al
    "ebfe"  # 102f: jmp 102f
)
# Counts, stores its return address, and sends itself another NMI the first time.
NESTING_NMI_HANDLER = bytes.fromhex(
    "ff0500060000"  # 1800: inc DWORD 0x600
    "a100060000"  # 1806: mov eax,ds:0x600
    "8b0c24"  # 180b: mov ecx,DWORD [esp]
    "890c8500060000"  # 180e: mov DWORD [eax*4+0x600],ecx
    "833d0006000002"  # 1815: cmp DWORD 0x600,0x2
    "730a"  # 181c: jae 1828
    "c7050003e0fe00440000"  # 181e: mov DWORD 0xfee00300,0x4400
    "cf"  # 1828: iret
)


def test_an_nmi_that_a_store_sends_comes_before_the_next_block_and_one_that_waited_right_behind_the_iret(
    machine: Machine,
) -> None:
    machine.start(SELF_NMI)
    machine.gate(2, HANDLER)
    machine.memory.write(HANDLER, NESTING_NMI_HANDLER)
    machine.cpu.run()
    assert machine.words(COUNTER, 3) == [2, 0x1029, 0x1029]


def test_an_nmi_that_waits_lets_its_predecessors_handler_loop(machine: Machine) -> None:
    """Any of its many blocks may be the one that ends with IRET."""
    machine.start(SELF_NMI)
    machine.gate(2, HANDLER)
    loop = bytes.fromhex("b9e8030000 e2fe cf")  # mov ecx,1000; loop $; iret
    machine.memory.write(HANDLER, NESTING_NMI_HANDLER[:-1] + loop)
    machine.cpu.run()
    assert machine.words(COUNTER, 3) == [2, 0x1029, 0x1029]


def test_an_iret_that_faults_unblocks_nmi(machine: Machine) -> None:
    machine.start(SELF_NMI)
    machine.gate(2, HANDLER)
    # The first frame's CS has no descriptor; #GP's handler puts the right one there, and returns to the IRET.
    spoil = bytes.fromhex(
        "833d0006000002"  # cmp DWORD 0x600,0x2
        "7308"  # jae, over the next
        "c7442404f0de0000"  # mov DWORD [esp+0x4],0xdef0
    )
    machine.memory.write(HANDLER, NESTING_NMI_HANDLER[:-1] + spoil + NESTING_NMI_HANDLER[-1:])
    machine.gate(13, 0x1900)
    machine.memory.write(
        0x1900,
        bytes.fromhex(
            "8b442404"  # 1900: mov eax,DWORD [esp+0x4]
            "a320060000"  # 1904: mov 0x620,eax
            "83c404"  # 1909: add esp,0x4
            "c744241008000000"  # 190c: mov DWORD [esp+0x10],0x8
            "eb00"  # 1914: jmp 1916
            "cf"  # 1916: iret
        ),
    )
    machine.cpu.run()
    count, first, second = machine.words(COUNTER, 3)
    assert (count, first) == (2, 0x1029)
    assert second == 0x1900  # The handler of the fault had not begun.
    assert machine.word(0x620) == HANDLER + len(NESTING_NMI_HANDLER) - 1 + len(spoil)  # The IRET


def test_an_nmi_ends_a_halt_with_interrupts_off(machine: Machine) -> None:
    machine.start(NMI[:-2] + MASKED_HALT)
    machine.gate(2, HANDLER)
    machine.memory.write(HANDLER, bytes.fromhex("ff0500060000 cf"))  # inc DWORD 0x600; iret
    with machine.running():
        eventually(lambda: machine.word(0x604) == 1)
        for count in (1, 2, 3):
            machine.daemon.nmi()
            eventually(lambda count=count: machine.word(COUNTER) == count)  # type: ignore[misc]


@pytest.mark.parametrize("guest", [SPIN, HALT, MASKED_HALT, b"\xeb\xfe"], ids=["spin", "halt", "masked halt", "masked"])
def test_stop_ends_run_and_run_goes_on(machine: Machine, guest: bytes) -> None:
    machine.start(guest)
    for _ in range(5):
        with machine.running() as running:
            time.sleep(0.01)
            assert not running.ended
            started = time.monotonic()
            machine.cpu.stop()
            running.join()
            assert time.monotonic() - started < 20


def test_a_stop_before_run_ends_it_at_once(machine: Machine) -> None:
    machine.start(HALT)
    machine.cpu.stop()
    machine.cpu.run()


def test_stop_while_a_masked_interrupt_waits(machine: Machine) -> None:
    machine.start(b"\xeb\xfe")
    machine.initialise_pic()
    with machine.running() as running, machine.vm.session("keyboard") as keyboard:
        keyboard.line(1).raise_()
        time.sleep(0.05)
        machine.cpu.stop()
        running.join()
        # Nothing was taken.
        assert machine.daemon.acknowledge() is not None


def test_close_ends_run(machine: Machine) -> None:
    machine.start(HALT)
    with machine.running() as running:
        eventually(machine.cpu._running.locked)
        machine.cpu.close()
        running.join()
        with pytest.raises(SessionClosed):
            machine.cpu.run()


def test_the_end_of_the_vm_ends_run(machine: Machine) -> None:
    machine.start(SPIN)
    with machine.running() as running:
        time.sleep(0.01)
        machine.vm.delete()
        with pytest.raises(SessionClosed):
            running.join()
    machine.vm = machine.vm._client.create_vm()


def test_only_one_thread_runs_it(machine: Machine) -> None:
    machine.start(SPIN)
    with machine.running():
        eventually(machine.cpu._running.locked)
        with pytest.raises(Busy):
            machine.cpu.run()


def test_ram_ends_below_the_ioapic(machine: Machine) -> None:
    from irqchip_client.unicorn import GuestMemory, UnicornVcpu

    with GuestMemory(0xFEC0_1000) as memory, pytest.raises(InvalidArgument):
        UnicornVcpu(memory, machine.vm, 0)


def test_interrupts_from_several_threads_all_arrive(machine: Machine) -> None:
    machine.start(TIMER[:0x1F] + bytes.fromhex("c783f0000000ff010000 fb ebfe"))
    for vector in (0x50, 0x51, 0x52, 0x53):
        machine.gate(vector, HANDLER + 0x40 * (vector - 0x50))
        code = bytearray(COUNT)
        code[2:6] = (COUNTER + 4 * (vector - 0x50)).to_bytes(4, "little")
        machine.memory.write(HANDLER + 0x40 * (vector - 0x50), bytes(code))

    def interrupt(number: int) -> None:
        with machine.vm.session(f"device {number}") as session:
            for count in range(1, 101):
                session.signal_msi(0xFEE0_0000, 0x50 + number)
                eventually(lambda count=count: machine.word(COUNTER + 4 * number) == count)  # type: ignore[misc]

    with machine.running():
        eventually(lambda: machine.daemon.mmio_read(0xFEE0_00F0).data == 0x1FF)
        threads = [threading.Thread(target=interrupt, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert machine.words(COUNTER, 4) == [100] * 4


CALLS = bytes.fromhex(
    "bb00200000"  # 1000: mov ebx,0x2000
    "bc00900000"  # 1005: mov esp,0x9000
    "ffd3"  # 100a: call ebx
    "a300060000"  # 100c: mov 0x600,eax
    "ebf7"  # 1011: jmp 100a
)


@pytest.mark.parametrize("through", ["write", "flush"])
def test_code_that_the_host_writes_is_executed(machine: Machine, through: str) -> None:
    """The guest has run there before, and does nothing to flush the code."""

    def load(value: int) -> None:
        code = bytes.fromhex("b8") + value.to_bytes(4, "little") + bytes.fromhex("c3")  # mov eax,value; ret
        if through == "write":
            machine.memory.write(0x2000, code)
        else:
            ctypes.memmove(machine.memory.host_address + 0x2000, code, len(code))
            machine.memory.flush(0x2000, len(code))

    machine.start(CALLS)
    load(1)
    with machine.running():
        for value in range(1, 20):
            load(value)
            eventually(lambda value=value: machine.word(COUNTER) == value)  # type: ignore[misc]
    load(20)
    with machine.running():
        eventually(lambda: machine.word(COUNTER) == 20)


def test_trapped_instructions_in_code_written_by_the_host_are_trapped(machine: Machine) -> None:
    machine.start(CALLS)
    machine.memory.write(0x2000, bytes.fromhex("b801000000c3"))
    with machine.running():
        eventually(lambda: machine.word(COUNTER) == 1)
        machine.memory.write(0x2000, bytes.fromhex("b91b000000 0f32 c3"))  # mov ecx,0x1b; rdmsr; ret
        eventually(lambda: machine.word(COUNTER) == 0xFEE0_0900)

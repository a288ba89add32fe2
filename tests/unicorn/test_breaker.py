"""Stopping from another thread: every instruction is executed exactly once."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from unicorn import x86_const
from unicorn.unicorn_const import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL
from unicorn.unicorn_py3.arch.intel import UcIntel

from irqchip_client.unicorn import GuestMemory
from irqchip_client.unicorn.breaker import IF, SLICE_NS, Breaker
from irqchip_client.unicorn.x86.state import protected_mode
from irqchip_client.vmm.start import Start, StartMode

CODE = bytes.fromhex(
    "31db"  # 1000: xor ebx,ebx
    "b900000000"  # 1002: mov ecx,
    "830500500000 01"  # 1007: add DWORD 0x5000,0x1
    "43"  # 100e: inc ebx
    "e2f6"  # 100f: loop 1007
    "ebfe"  # 1011: jmp 1011
)
END = 0x1011


def emulator(memory: GuestMemory, code: bytes) -> UcIntel:
    uc = UcIntel(UC_ARCH_X86, UC_MODE_64)
    memory.write(0x1000, code)
    uc.mem_map_ptr(0, memory.size, UC_PROT_ALL, memory.host_address)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])
    uc.context_restore(protected_mode(Start(StartMode.PROTECTED, 0)))
    return uc


@pytest.mark.parametrize(("native", "times"), [(True, 2_000_000), (False, 50_000)], ids=["machine code", "Python"])
def test_instructions_that_read_and_write_memory_are_executed_once(native: bool, times: int) -> None:
    with GuestMemory(1 << 16) as memory:
        uc = emulator(memory, CODE[:3] + times.to_bytes(4, "little") + CODE[7:])
        breaker = Breaker(uc, native=native)
        ended = threading.Event()

        def stop() -> None:
            while not ended.is_set():
                breaker.stop()
                time.sleep(0.0001)

        thread = threading.Thread(target=stop)
        thread.start()
        ip = 0x1000
        stops = 0
        while ip != END:
            breaker.clear()
            breaker.begin_slice()
            uc.emu_start(ip, 0)
            ip = uc.reg_read(x86_const.UC_X86_REG_RIP)
            stops += 1
        ended.set()
        thread.join()
        assert stops > 10
        assert int.from_bytes(memory.read(0x5000, 4), "little") == times
        assert uc.reg_read(x86_const.UC_X86_REG_EBX) == times
        uc.mem_unmap(0, memory.size)


@pytest.mark.parametrize("native", [True, False], ids=["machine code", "Python"])
def test_it_stops_where_a_block_begins_with_interrupts_enabled(native: bool) -> None:
    code = bytes.fromhex(
        "eb00"  # 1000: jmp 1002
        "90"  # 1002: nop
        "fb"  # 1003: sti
        "90"  # 1004: nop
        "90"  # 1005: nop
        "ebfe"  # 1006: jmp 1006
    )
    with GuestMemory(1 << 16) as memory:
        uc = emulator(memory, code)
        breaker = Breaker(uc, native=native)
        breaker.stop_at_window()
        uc.emu_start(0x1000, 0)
        assert uc.reg_read(x86_const.UC_X86_REG_RIP) == 0x1004
        assert uc.reg_read(x86_const.UC_X86_REG_EFLAGS) & IF
        breaker.stop_at_window(after_one=True)
        uc.emu_start(0x1004, 0)
        assert uc.reg_read(x86_const.UC_X86_REG_RIP) == 0x1005
        uc.mem_unmap(0, memory.size)


@pytest.mark.parametrize("native", [True, False], ids=["machine code", "Python"])
def test_it_stops_after_a_time_slice_whose_length_in_blocks_it_learns(native: bool) -> None:
    with GuestMemory(1 << 16) as memory:
        uc = emulator(memory, bytes.fromhex("ebfe"))
        breaker = Breaker(uc, native=native)
        for _ in range(20):
            breaker.begin_slice()
            assert not breaker.slice_over
            uc.emu_start(0x1000, 0)
            assert breaker.slice_over

        def slice_ns() -> int:
            started = time.perf_counter_ns()
            breaker.begin_slice()
            uc.emu_start(0x1000, 0)
            return time.perf_counter_ns() - started

        # A slice in which the machine did something else makes the next one short.
        assert any(slice_ns() > SLICE_NS / 10 for _ in range(20))
        uc.mem_unmap(0, memory.size)

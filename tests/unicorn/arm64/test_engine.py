"""The emulator of an arm64 processor, without the irqchip: exceptions, traps and system registers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.arm64 import SYSREGS
from irqchip_client.unicorn.arm64.engine import Engine, Exit, GuestException, RegisterAccess, Vector
from irqchip_client.unicorn.arm64.registers import FIQ, IRQ
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Arm64Start

RAM = 0x4000_0000
ENTRY, USER, VECTORS, TABLE = RAM + 0x1000, RAM + 0x2000, RAM + 0x4000, RAM + 0x8000
EL1H_MASKED, EL1H, EL1T, EL0 = 0x3C5, 0x345, 0x344, 0x340  # as SPSR_EL1 has them; IRQ is not masked in the last three
SYNCHRONOUS_EL1T, SYNCHRONOUS_EL1H, SYNCHRONOUS_EL0 = 0x000, 0x200, 0x400

SET_UP = bytes.fromhex(
    "00c018d5"  # msr vbar_el1, x0
    "01084091"  # add x1, x0, #0x2, lsl #12
    "3f000091"  # mov sp, x1
    "ff4203d5"  # msr daifclr, #0x2
)
# What a handler sees: x10 SPSR, x11 ELR, x12 ESR, x13 FAR, x14 SP, x15 DAIF, x16 the level.
HANDLER = bytes.fromhex(
    "0a4038d5"  # mrs x10, spsr_el1
    "2b4038d5"  # mrs x11, elr_el1
    "0c5238d5"  # mrs x12, esr_el1
    "0d6038d5"  # mrs x13, far_el1
    "ee030091"  # mov x14, sp
    "2f423bd5"  # mrs x15, daif
    "504238d5"  # mrs x16, currentel
    "7f2003d5"  # wfi
    "e0039fd6"  # eret
)
SVC = bytes.fromhex(
    "814602d4"  # svc #0x1234
)
SVC_AT_EL1T = bytes.fromhex(
    "bf4000d5"  # msr spsel, #0x0
    "01044091"  # add x1, x0, #0x1, lsl #12
    "3f000091"  # mov sp, x1
    "814602d4"  # svc #0x1234
)
ENTER_USER = bytes.fromhex(
    "224018d5"  # msr elr_el1, x2
    "034018d5"  # msr spsr_el1, x3
    "e0039fd6"  # eret
)
USER_CODE = bytes.fromhex(
    "21044091"  # add x1, x1, #0x1, lsl #12
    "3f000091"  # mov sp, x1
    "29050091"  # add x9, x9, #0x1
    "a10000d4"  # svc #0x5
    "29050091"  # add x9, x9, #0x1
    "c10000d4"  # svc #0x6
)
UNDEFINED = bytes.fromhex(
    "00000000"  # udf #0
)
MMU_ON = bytes.fromhex(
    "032018d5"  # msr ttbr0_el1, x3
    "442018d5"  # msr tcr_el1, x4
    "05a218d5"  # msr mair_el1, x5
    "df3f03d5"  # isb
    "061038d5"  # mrs x6, sctlr_el1
    "c60040b2"  # orr x6, x6, #0x1
    "061018d5"  # msr sctlr_el1, x6
    "df3f03d5"  # isb
    "470040f9"  # ldr x7, [x2]
)
IDS = bytes.fromhex(
    "a00038d5"  # mrs x0, mpidr_el1
    "010438d5"  # mrs x1, id_aa64pfr0_el1
    "424238d5"  # mrs x2, currentel
    "7f2003d5"  # wfi
)
TIMERS = bytes.fromhex(
    "40e03bd5"  # mrs x0, cntvct_el0
    "1fe03bd5"  # mrs xzr, cntfrq_el0
    "41e31bd5"  # msr cntv_cval_el0, x1
    "3fe31bd5"  # msr cntv_ctl_el0, xzr
    "3de23bd5"  # mrs x29, cntp_ctl_el0
    "02c138d5"  # mrs x2, isr_el1
    "7f2003d5"  # wfi
)
ICC = bytes.fromhex(
    "03cc38d5"  # mrs x3, icc_iar1_el1
    "23cc18d5"  # msr icc_eoir1_el1, x3
    "1f4638d5"  # mrs xzr, icc_pmr_el1
    "7f2003d5"  # wfi
)
ICC_AT_EL0 = bytes.fromhex(
    "03cc38d5"  # mrs x3, icc_iar1_el1
)
CALLS = bytes.fromhex(
    "020000d4"  # hvc #0x0
    "030000d4"  # smc #0x0
    "7f2003d5"  # wfi
)
MMIO = bytes.fromhex(
    "010040b9"  # ldr w1, [x0]
    "01140039"  # strb w1, [x0, #5]
    "010400f9"  # str x1, [x0, #8]
    "7f2003d5"  # wfi
)
COUNT = bytes.fromhex(
    "240040b9"  # ldr w4, [x1]
    "84040011"  # add w4, w4, #0x1
    "240000b9"  # str w4, [x1]
    "63040091"  # add x3, x3, #0x1
    "000400f1"  # subs x0, x0, #0x1
    "61ffff54"  # b.ne 0
    "7f2003d5"  # wfi
)
SPIN = bytes.fromhex(
    "00000014"  # b 0
)
SPIN_THEN_OPEN = bytes.fromhex(
    "000400f1"  # subs x0, x0, #0x1
    "e1ffff54"  # b.ne 0
    "ff4203d5"  # msr daifclr, #0x2
    "00000014"  # b c
)


class Bus:
    """Keeps what the guest does."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int]] = []
        self.system_registers = True

    def mmio_read(self, address: int, size: int) -> int:
        self.done.append((f"load {size}", address, 0))
        return 0x1122_3344_5566_7788 & (1 << 8 * size) - 1

    def mmio_write(self, address: int, value: int, size: int) -> None:
        self.done.append((f"store {size}", address, value))

    def sysreg_read(self, register: int) -> int:
        self.done.append(("mrs", register, 0))
        return 0x5555_0000_0000_0000 | register

    def sysreg_write(self, register: int, value: int) -> None:
        self.done.append(("msr", register, value))

    def has_system_register_gic(self) -> bool:
        return self.system_registers


class Guest:
    """An engine whose guest has set up its vectors, all of which lead to the same handler, and its stack."""

    def __init__(self, code: bytes, native: bool = True) -> None:
        self.memory = GuestMemory(1 << 16, start=RAM)
        self.bus = Bus()
        self.engine = Engine(self.memory, self.bus, vcpu=0x21, native=native)
        for offset in range(0, 0x800, 0x80):
            self.memory.write(VECTORS + offset, HANDLER)
        self.memory.write(ENTRY, SET_UP + code)
        self.code = ENTRY + len(SET_UP)

    def start(self, x2: int = 0, x3: int = 0) -> None:
        self.engine.start(Arm64Start(ENTRY, x0=VECTORS, x2=x2, x3=x3))

    def run(self) -> Exit | RegisterAccess | GuestException | None:
        """Executes until the guest has something to be done."""
        while True:
            self.engine.breaker.clear()
            if self.engine.breaker.slice_over:
                self.engine.breaker.begin_slice()
            if (exit_ := self.engine.run()) is not None:
                return exit_

    def take(self, exit_: Exit | RegisterAccess | GuestException | None) -> None:
        """Takes the guest's own exception, and executes its handler up to the WFI."""
        assert isinstance(exit_, GuestException)
        self.engine.enter(Vector.SYNCHRONOUS, exit_.syndrome, exit_.address)
        assert self.run() is Exit.WFI

    def seen(self) -> dict[str, int]:
        """What the handler has seen."""
        names = ("spsr", "elr", "esr", "far", "sp", "daif", "level")
        return {name: self.engine.register(10 + number) for number, name in enumerate(names)}


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    guest = Guest(request.param)
    yield guest
    guest.engine.close()
    guest.memory.close()


def with_code(code: bytes) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("guest", [code], indirect=True, ids=[""])


# Exceptions: D1.3.


@with_code(SVC)
def test_an_svc_enters_the_vector_of_its_own_level_with_interrupts_masked(guest: Guest) -> None:
    guest.start()
    guest.take(guest.run())
    seen = guest.seen()
    assert seen["elr"] == guest.code + 4
    assert seen["spsr"] & 0x3DF == EL1H
    assert seen["esr"] == 0x5600_1234
    assert seen["daif"] == 0x3C0
    assert seen["level"] == 4
    assert seen["sp"] == RAM + 0x6000
    assert guest.engine.ip == VECTORS + SYNCHRONOUS_EL1H + len(HANDLER) - 4


@with_code(SVC_AT_EL1T)
def test_an_exception_with_el0s_stack_pointer_gets_el1s_and_its_return_gives_it_back(guest: Guest) -> None:
    guest.start()
    guest.take(guest.run())
    seen = guest.seen()
    assert seen["spsr"] & 0x3DF == EL1T
    assert seen["sp"] == RAM + 0x6000
    assert guest.engine.ip == VECTORS + SYNCHRONOUS_EL1T + len(HANDLER) - 4
    guest.memory.write(guest.code + len(SVC_AT_EL1T), bytes.fromhex("e9030091 7f2003d5"))  # mov x9, sp; wfi
    assert guest.run() is Exit.WFI
    assert guest.engine.register(9) == RAM + 0x5000


@with_code(ENTER_USER)
def test_a_guests_user_mode_makes_calls_and_goes_on_behind_them(guest: Guest) -> None:
    guest.memory.write(USER, USER_CODE)
    guest.start(x2=USER, x3=EL0)
    guest.take(guest.run())
    seen = guest.seen()
    assert seen["spsr"] & 0x3DF == EL0
    assert (seen["esr"], seen["elr"], seen["level"]) == (0x5600_0005, USER + 16, 4)
    assert seen["sp"] == RAM + 0x6000
    assert guest.engine.ip == VECTORS + SYNCHRONOUS_EL0 + len(HANDLER) - 4
    guest.take(guest.run())
    assert guest.engine.register(9) == 2
    assert guest.seen()["esr"] == 0x5600_0006


@with_code(UNDEFINED)
def test_an_undefined_instruction_is_the_guests_own_and_returns_to_it(guest: Guest) -> None:
    guest.start()
    guest.take(guest.run())
    assert (guest.seen()["esr"], guest.seen()["elr"]) == (0x0200_0000, guest.code)


@with_code(MMU_ON)
def test_a_load_that_is_not_mapped_is_an_abort_with_its_address(guest: Guest) -> None:
    """One block of 1 GiB, at 1 GiB, is mapped: 39 bits of addresses, pages of 4 KiB."""
    guest.memory.write(TABLE + 8, (RAM | 0x705).to_bytes(8, "little"))
    guest.start(x2=0x1234_5678, x3=TABLE)
    for register, value in ((4, 0x1_8080_3519), (5, 0xFF)):
        guest.engine.set_register(register, value)
    guest.take(guest.run())
    seen = guest.seen()
    assert seen["esr"] >> 26 == 0x25  # a data abort from the same level
    assert seen["esr"] & 0x3F == 0x05  # a translation fault at level 1
    assert seen["far"] == 0x1234_5678
    assert seen["elr"] == guest.code + len(MMU_ON) - 4


@with_code(SPIN)
@pytest.mark.parametrize(("vector", "offset"), [(Vector.IRQ, 0x280), (Vector.FIQ, 0x300)])
def test_an_interrupt_enters_its_vector_and_changes_no_syndrome(guest: Guest, vector: Vector, offset: int) -> None:
    guest.start()
    guest.engine.breaker.clear()
    guest.engine.breaker.begin_slice()
    guest.engine.breaker.stop_at_window()
    assert guest.engine.run() is None
    assert guest.engine.masked == FIQ
    guest.engine.enter(vector)
    assert guest.engine.masked == FIQ | IRQ
    assert guest.engine.ip == VECTORS + offset
    assert guest.run() is Exit.WFI
    assert (guest.seen()["elr"], guest.seen()["esr"], guest.seen()["far"]) == (guest.code, 0, 0)


# System registers.


@with_code(IDS)
@pytest.mark.parametrize("system_registers", [False, True])
def test_a_guest_sees_its_affinity_its_gic_and_no_higher_levels(guest: Guest, system_registers: bool) -> None:
    guest.bus.system_registers = system_registers
    guest.start()
    assert guest.run() is Exit.WFI
    assert guest.engine.register(0) == 0x8000_0201  # vCPU 21h: as KVM numbers them, 16 in a cluster
    levels = guest.engine.register(1)
    assert levels & 0xFFFF == 0x0022
    assert levels >> 24 & 0xF == int(system_registers)
    assert guest.engine.register(2) == 4  # EL1


@with_code(TIMERS)
def test_timers_and_isr_are_those_of_the_bus_and_not_unicorns(guest: Guest) -> None:
    guest.start()
    guest.engine.set_register(1, 0)
    assert guest.run() is Exit.WFI
    assert guest.bus.done == [
        ("mrs", SYSREGS["CNTVCT_EL0"], 0),
        ("mrs", SYSREGS["CNTFRQ_EL0"], 0),
        ("msr", SYSREGS["CNTV_CVAL_EL0"], RAM + 0x6000),
        ("msr", SYSREGS["CNTV_CTL_EL0"], 0),
        ("mrs", SYSREGS["CNTP_CTL_EL0"], 0),
        ("mrs", SYSREGS["ISR_EL1"], 0),
    ]
    assert guest.engine.register(0) == 0x5555_0000_0000_0000 | SYSREGS["CNTVCT_EL0"]
    assert guest.engine.register(29) == 0x5555_0000_0000_0000 | SYSREGS["CNTP_CTL_EL0"]


@with_code(ICC)
def test_registers_of_the_gic_stop_the_emulator_before_the_access(guest: Guest) -> None:
    guest.start()
    read = guest.run()
    assert isinstance(read, RegisterAccess)
    assert (read.sysreg, read.write) == (SYSREGS["ICC_IAR1_EL1"], False)
    assert guest.engine.ip == guest.code
    guest.engine.finish(read, 0x1B)
    write = guest.run()
    assert isinstance(write, RegisterAccess)
    assert (write.sysreg, write.write, write.value) == (SYSREGS["ICC_EOIR1_EL1"], True, 0x1B)
    guest.engine.finish(write)
    ignored = guest.run()
    assert isinstance(ignored, RegisterAccess)
    guest.engine.finish(ignored, 1)
    assert guest.run() is Exit.WFI
    assert guest.engine.register(3) == 0x1B


@with_code(ENTER_USER)
def test_user_mode_has_no_registers_of_the_gic(guest: Guest) -> None:
    guest.memory.write(USER, ICC_AT_EL0)
    guest.start(x2=USER, x3=EL0)
    guest.take(guest.run())
    assert (guest.seen()["esr"], guest.seen()["elr"]) == (0x0200_0000, USER)


# What else stops it.


@with_code(CALLS)
def test_calls_of_the_firmware_stop_the_emulator_behind_them(guest: Guest) -> None:
    guest.start()
    assert guest.run() is Exit.HVC
    assert guest.engine.ip == guest.code + 4
    assert guest.run() is Exit.SMC
    assert guest.engine.ip == guest.code + 8
    assert guest.run() is Exit.WFI


@with_code(MMIO)
def test_loads_and_stores_outside_of_ram_go_to_the_bus_in_at_most_four_bytes(guest: Guest) -> None:
    guest.start()
    guest.memory.write(ENTRY, bytes.fromhex("1f2003d5") * 4)  # nop, instead of what sets up
    guest.engine.set_register(0, 0x0800_0000)
    assert guest.run() is Exit.WFI
    assert guest.bus.done == [
        ("load 4", 0x0800_0000, 0),
        ("store 1", 0x0800_0005, 0x88),
        ("store 4", 0x0800_0008, 0x5566_7788),
        ("store 4", 0x0800_000C, 0),
    ]


@pytest.mark.parametrize(("native", "times"), [(True, 1_000_000), (False, 30_000)], ids=["machine code", "Python"])
def test_instructions_are_executed_once_however_often_the_emulator_stops(native: bool, times: int) -> None:
    guest = Guest(COUNT, native)
    guest.start()
    guest.memory.write(ENTRY, bytes.fromhex("1f2003d5") * 4)
    guest.engine.set_register(0, times)
    guest.engine.set_register(1, RAM + 0x9000)
    breaker = guest.engine.breaker
    ended = threading.Event()

    def stop() -> None:
        while not ended.is_set():
            breaker.stop()
            time.sleep(0.0001)

    thread = threading.Thread(target=stop)
    thread.start()
    stops = 0
    try:
        while True:
            breaker.clear()
            breaker.begin_slice()
            if guest.engine.run() is Exit.WFI:
                break
            stops += 1
    finally:
        ended.set()
        thread.join()
    assert stops > 10
    assert guest.engine.register(3) == int.from_bytes(guest.memory.read(RAM + 0x9000, 4), "little") == times
    guest.engine.close()
    guest.memory.close()


@with_code(SPIN_THEN_OPEN)
@pytest.mark.parametrize("bits", [IRQ, IRQ | FIQ])
def test_the_window_opens_where_the_guest_unmasks(guest: Guest, bits: int) -> None:
    guest.start()
    guest.memory.write(ENTRY, bytes.fromhex("1f2003d5") * 4)
    guest.engine.set_register(0, 1000)
    guest.engine.breaker.narrow_window(bits)
    guest.engine.breaker.stop_at_window()
    guest.engine.breaker.stop_after_a_block()
    while guest.engine.register(0):
        guest.engine.breaker.clear()
        guest.engine.breaker.begin_slice()
        guest.engine.run()
    guest.engine.breaker.clear()
    guest.engine.breaker.begin_slice()
    assert guest.engine.run() is None
    assert guest.engine.masked == FIQ
    assert guest.engine.ip == guest.code + 12

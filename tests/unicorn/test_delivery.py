"""Delivery of interrupts and exceptions as in the SDM, volume 3, chapter 6 and section 20.1.4."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from struct import pack, unpack

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn.emulator import Unsupported
from irqchip_client.unicorn.x86.delivery import AC, BIG, IF, NT, RF, TF, VM, Event, Origin, Segment, Table, deliver
from irqchip_client.unicorn.x86.exceptions import Fault, TripleFault, Vector

GDT, IDT, TSS = 0x1000, 0x2000, 0x3000
CODE, CODE_16, CONFORMING, USER_CODE, ABSENT, DATA, CODE_64 = 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38
DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,
    0x0000_9B12_3456_0FFF,
    0x00CF_9F00_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00CF_1B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00AF_9B00_0000_FFFF,
)
FLAT_CODE, FLAT_DATA = Segment(CODE, 0, 0xFFFF_FFFF, 0x00CF_9B00), Segment(DATA, 0, 0xFFFF_FFFF, 0x00CF_9300)
# After DESCRIPTORS: the program's data, an inner stack that is absent, one of ring 3, code of ring 3 in 64 bits.
USER_DATA, ABSENT_DATA, CONFORMING_64, USER_CODE_64 = 0x40, 0x48, 0x50, 0x58
RING_DESCRIPTORS = (
    0x00CF_F300_0000_FFFF,
    0x00CF_1300_0000_FFFF,
    0x00AF_9F00_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
)
TSS_SELECTOR, TSS_BUSY, TSS_16_BUSY = 0x70, 0x8B00, 0x8300
IDTR, GDTR, NOTHING = Table(IDT, 0x7FF), Table(GDT, 0x3F), Table(0, 0)
TR = Segment(TSS_SELECTOR, TSS, 0x67, TSS_BUSY)
INTERRUPT, TRAP = 0x8E, 0x8F
EXTERNAL, SOFTWARE = Origin.EXTERNAL, Origin.SOFTWARE


def exception(vector: int, error_code: int = 0) -> Event:
    return Event(vector, Origin.EXCEPTION, error_code)


@dataclass
class Registers:
    cr0: int = 1
    long_mode: bool = False
    cpl: int = 0
    cs: Segment = FLAT_CODE
    ss: Segment = FLAT_DATA
    sp: int = 0x8000
    idtr: Table = IDTR
    gdtr: Table = GDTR
    ldtr: Table = NOTHING
    tr: Segment = TR


@dataclass
class Cpu:
    """A delivery.Processor whose memory is a bytearray with some absent pages."""

    state: Registers = field(default_factory=Registers)
    ip: int = 0x1234
    flags: int = 2 | IF
    cr2: int = 0
    memory: bytearray = field(default_factory=lambda: bytearray(0x10000))
    absent: range = range(0)

    def __post_init__(self) -> None:
        self.write(GDT, pack("<12Q", *DESCRIPTORS, *RING_DESCRIPTORS))

    def read(self, address: int, length: int) -> bytes:
        self._check(address, 0)
        return bytes(self.memory[address : address + length])

    def write(self, address: int, data: bytes, *, user: bool = False) -> None:
        self._check(address, 6 if user else 2)
        self.memory[address : address + len(data)] = data

    def _check(self, address: int, error_code: int) -> None:
        if address in self.absent:
            raise Fault(Vector.PF, error_code, address)

    def set_cr2(self, address: int) -> None:
        self.cr2 = address

    def skip(self, length: int) -> None:
        self.ip += length

    def enter(self, cs: Segment, ip: int, sp: int, flags: int, ss: Segment | None = None) -> None:
        self.state = replace(self.state, cs=cs, sp=sp, ss=ss or self.state.ss, cpl=cs.selector & 3)
        self.ip, self.flags = ip, flags

    def gate(self, vector: int, offset: int = 0x5000, selector: int = CODE, kind: int = INTERRUPT) -> None:
        self.write(IDT + 8 * vector, pack("<HHBBH", offset & 0xFFFF, selector, 0, kind, offset >> 16))

    def gate64(self, vector: int, offset: int, selector: int = CODE_64, kind: int = INTERRUPT, ist: int = 0) -> None:
        parts = offset & 0xFFFF, selector, ist, kind, offset >> 16 & 0xFFFF, offset >> 32, 0
        self.write(IDT + 16 * vector, pack("<HHBBHII", *parts))

    def stack(self, count: int, letter: str = "I") -> tuple[int, ...]:
        """Words on the stack, from the top."""
        size = {"H": 2, "I": 4, "Q": 8}[letter] * count
        at = self.state.ss.base + self.state.sp
        return unpack(f"<{count}{letter}", self.memory[at : at + size])


@pytest.fixture
def cpu() -> Cpu:
    return Cpu()


@pytest.fixture
def real() -> Cpu:
    cpu = Cpu()
    code, stack = Segment(0x100, 0x1000, 0xFFFF, 0x9300), Segment(0x400, 0x4000, 0xFFFF, 0x9300)
    cpu.state = Registers(cr0=0, cs=code, ss=stack, sp=0x200, idtr=Table(0, 0x3FF))
    return cpu


@pytest.fixture
def long() -> Cpu:
    cpu = Cpu()
    cpu.state = Registers(
        long_mode=True, cs=Segment(CODE_64, 0, 0xFFFF_FFFF, 0x00AF_9B00), sp=0x8009, idtr=Table(IDT, 0xFFF)
    )
    return cpu


class TestRealMode:
    """20.1.4"""

    def test_pushes_flags_cs_and_ip_and_takes_cs_and_ip_from_the_vector_table(self, real: Cpu) -> None:
        real.write(0x21 * 4, pack("<HH", 0x0010, 0x0700))
        deliver(real, Event(0x21, EXTERNAL))
        assert real.stack(3, "H") == (0x1234, 0x100, 2 | IF)
        assert (real.ip, real.state.cs.selector, real.state.cs.base) == (0x10, 0x700, 0x7000)

    def test_clears_if_tf_and_ac(self, real: Cpu) -> None:
        real.flags |= TF | AC
        deliver(real, Event(0x21, SOFTWARE))
        assert real.flags == 2

    def test_pushes_no_error_codes(self, real: Cpu) -> None:
        deliver(real, exception(Vector.GP, 0x10))
        assert real.state.sp == 0x200 - 6

    def test_the_stack_goes_on_at_the_segments_end(self, real: Cpu) -> None:
        real.state.sp = 0
        real.memory = bytearray(0x20000)
        deliver(real, Event(0x21, EXTERNAL))
        assert real.state.sp == 0xFFFA

    def test_a_vector_beyond_the_tables_limit_without_a_handler_for_the_fault_is_a_shutdown(self, real: Cpu) -> None:
        real.state.idtr = Table(0, 0)
        with pytest.raises(TripleFault):
            deliver(real, Event(0x21, EXTERNAL))


class TestProtectedMode:
    """6.12.1"""

    def test_pushes_eflags_cs_and_eip(self, cpu: Cpu) -> None:
        cpu.gate(0x21, 0x1_5000)
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.stack(3) == (0x1234, CODE, 2 | IF)
        assert (cpu.ip, cpu.state.cs.selector, cpu.state.sp) == (0x1_5000, CODE, 0x8000 - 12)

    def test_an_interrupt_gate_clears_if_and_a_trap_gate_does_not(self, cpu: Cpu) -> None:
        cpu.gate(0x21)
        cpu.gate(0x22, kind=TRAP)
        deliver(cpu, Event(0x22, EXTERNAL))
        assert cpu.flags == 2 | IF
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.flags == 2

    def test_both_clear_tf_nt_and_rf(self, cpu: Cpu) -> None:
        cpu.gate(0x22, kind=TRAP)
        cpu.flags |= TF | NT | RF
        deliver(cpu, Event(0x22, SOFTWARE))
        assert cpu.flags == 2 | IF

    def test_16_bit_gates_push_words(self, cpu: Cpu) -> None:
        cpu.gate(0x21, kind=0x86)
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.stack(3, "H") == (0x1234, CODE, 2 | IF)

    def test_a_16_bit_stack_segment_uses_sp(self, cpu: Cpu) -> None:
        cpu.gate(0x21)
        cpu.state.ss = replace(cpu.state.ss, access=cpu.state.ss.access & ~BIG)
        cpu.state.sp = 0xABC_0100
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.state.sp == 0xABC_00F4
        assert unpack("<I", cpu.memory[0xF4:0xF8]) == (0x1234,)

    def test_the_handlers_segment_is_that_of_its_descriptor(self, cpu: Cpu) -> None:
        cpu.gate(0x21, 0x500, CODE_16)
        deliver(cpu, Event(0x21, EXTERNAL))
        assert (cpu.state.cs.base, cpu.state.cs.limit) == (0x12_3456, 0xFFF)

    @pytest.mark.parametrize("vector", [8, 10, 11, 12, 13, 14, 17, 21])
    def test_some_exceptions_push_an_error_code(self, cpu: Cpu, vector: int) -> None:
        cpu.gate(vector)
        deliver(cpu, exception(vector, 0x5A))
        assert cpu.stack(2) == (0x5A, 0x1234)

    @pytest.mark.parametrize("event", [exception(0), exception(6), Event(13, SOFTWARE), Event(14, EXTERNAL)])
    def test_other_events_push_no_error_code(self, cpu: Cpu, event: Event) -> None:
        cpu.gate(event.vector)
        deliver(cpu, event)
        assert cpu.stack(1) == (0x1234,)

    @pytest.mark.parametrize(
        ("event", "rf"),
        [
            (exception(0), RF),
            (exception(13), RF),
            (exception(1), 0),
            (Event(3, SOFTWARE), 0),
            (Event(0x21, EXTERNAL), 0),
        ],
    )
    def test_the_image_of_a_fault_has_rf(self, cpu: Cpu, event: Event, rf: int) -> None:
        cpu.gate(event.vector)
        deliver(cpu, event)
        assert cpu.stack(4)[3 if event.vector == 13 else 2] & RF == rf

    def test_software_may_use_gates_of_its_own_ring(self, cpu: Cpu) -> None:
        cpu.state.cpl = 3
        cpu.gate(0x80, selector=CONFORMING)
        cpu.gate(13, selector=CONFORMING)
        deliver(cpu, Event(0x80, SOFTWARE))
        assert cpu.stack(1) == (0x80 * 8 | 2,)

    def test_task_gates_and_virtual_8086_mode_are_not_supported(self, cpu: Cpu) -> None:
        cpu.gate(0x21, kind=0x85)
        with pytest.raises(Unsupported, match="task gate"):
            deliver(cpu, Event(0x21, EXTERNAL))
        cpu.flags |= VM
        with pytest.raises(Unsupported, match="8086"):
            deliver(cpu, Event(0x21, EXTERNAL))


class TestFaultsOfDelivery:
    """6.13 and 6.15"""

    @pytest.mark.parametrize(
        ("gate", "vector", "error_code"),
        [
            ({"kind": 0x0E}, Vector.NP, 0x21 * 8 | 3),  # not present
            ({"kind": 0x8C}, Vector.GP, 0x21 * 8 | 3),  # no such gate
            ({"selector": 0}, Vector.GP, 1),
            ({"selector": DATA}, Vector.GP, DATA | 1),
            ({"selector": ABSENT}, Vector.NP, ABSENT | 1),
            ({"selector": USER_CODE}, Vector.GP, USER_CODE | 1),  # an outer ring's
            ({"selector": 0x40}, Vector.GP, 0x40 | 1),  # behind the GDT
            ({"selector": CODE_16, "offset": 0x1000}, Vector.GP, 1),  # behind the segment
        ],
    )
    def test_the_error_code_names_the_cause_and_has_the_external_bit(
        self, cpu: Cpu, gate: dict[str, int], vector: int, error_code: int
    ) -> None:
        cpu.gate(0x21, **gate)
        cpu.gate(vector, 0x6000)
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.ip == 0x6000
        assert cpu.stack(2) == (error_code, 0x1234)

    def test_the_error_code_of_int_n_has_no_external_bit(self, cpu: Cpu) -> None:
        cpu.gate(13)
        cpu.gate(0x21, selector=DATA)
        deliver(cpu, Event(0x21, SOFTWARE))
        assert cpu.stack(1) == (DATA,)

    def test_a_page_fault_sets_cr2(self, cpu: Cpu) -> None:
        cpu.gate(14)
        cpu.absent = range(IDT + 0x21 * 8, IDT + 0x22 * 8)
        deliver(cpu, Event(0x21, EXTERNAL))
        assert cpu.cr2 == IDT + 0x21 * 8
        assert cpu.stack(2) == (0, 0x1234)

    @pytest.mark.parametrize(("first", "gate"), [(Vector.GP, 0x0E), (Vector.DE, 0x0E), (Vector.PF, 0x0E)])
    def test_two_contributory_exceptions_are_a_double_fault(self, cpu: Cpu, first: int, gate: int) -> None:
        cpu.gate(first, kind=gate)
        cpu.gate(8, 0x6000)
        deliver(cpu, exception(first))
        assert cpu.ip == 0x6000
        assert cpu.stack(2) == (0, 0x1234)

    def test_a_benign_exception_and_another_are_no_double_fault(self, cpu: Cpu) -> None:
        cpu.gate(6, kind=0x0E)
        cpu.gate(11, 0x6000)
        deliver(cpu, exception(6))
        assert cpu.ip == 0x6000
        assert cpu.stack(1) == (6 * 8 | 3,)

    def test_a_contributory_exception_and_a_page_fault_are_no_double_fault(self, cpu: Cpu) -> None:
        cpu.gate(14, 0x6000)
        cpu.absent = range(IDT + 13 * 8, IDT + 14 * 8)
        deliver(cpu, exception(13))
        assert cpu.ip == 0x6000

    def test_a_fault_of_the_double_faults_handler_is_a_shutdown(self, cpu: Cpu) -> None:
        with pytest.raises(TripleFault):
            deliver(cpu, exception(13))

    def test_a_stack_that_is_too_small_is_a_stack_fault(self, cpu: Cpu) -> None:
        cpu.gate(0x21)
        cpu.gate(12, 0x6000)
        cpu.state.sp = 8
        with pytest.raises(TripleFault):  # Its own handler would use the same stack.
            deliver(cpu, Event(0x21, EXTERNAL))


class TestLongMode:
    """6.14"""

    def test_aligns_the_stack_and_pushes_ss_and_rsp(self, long: Cpu) -> None:
        long.gate64(0x21, 0xFFFF_8000_1234_5678)
        deliver(long, Event(0x21, EXTERNAL))
        assert long.state.sp == 0x8000 - 5 * 8
        assert long.stack(5, "Q") == (0x1234, CODE_64, 2 | IF, 0x8009, DATA)
        assert long.ip == 0xFFFF_8000_1234_5678
        assert long.flags == 2

    def test_pushes_error_codes_below(self, long: Cpu) -> None:
        long.gate64(13, 0x5000, kind=TRAP)
        deliver(long, exception(13, 0x18))
        assert long.stack(2, "Q") == (0x18, 0x1234)
        assert long.flags == 2 | IF

    def test_an_interrupt_stack_is_the_tss_s(self, long: Cpu) -> None:
        long.write(TSS + 0x24 + 8 * 2, pack("<Q", 0x7008))
        long.gate64(0x21, 0x5000, ist=3)
        deliver(long, Event(0x21, EXTERNAL))
        assert long.state.sp == 0x7000 - 5 * 8

    def test_an_interrupt_stack_beyond_the_tsss_limit_is_a_fault(self, long: Cpu) -> None:
        long.state.tr = replace(TR, limit=0x2B)
        long.gate64(0x21, 0x5000, ist=3)
        long.gate64(10, 0x6000)
        deliver(long, Event(0x21, EXTERNAL))
        assert long.ip == 0x6000

    @pytest.mark.parametrize("selector", [CODE, DATA])
    def test_handlers_are_64_bit_code(self, long: Cpu, selector: int) -> None:
        long.gate64(0x21, 0x5000, selector)
        long.gate64(13, 0x6000)
        deliver(long, Event(0x21, EXTERNAL))
        assert long.ip == 0x6000
        assert long.stack(1, "Q") == (selector | 1,)

    def test_16_bit_gates_are_invalid(self, long: Cpu) -> None:
        long.gate64(0x21, 0x5000, kind=0x86)
        long.gate64(13, 0x6000)
        deliver(long, Event(0x21, EXTERNAL))
        assert long.stack(1, "Q") == (0x21 * 8 | 3,)


USER_STACK, INNER_STACK = 0xA000, 0x9000


@pytest.fixture
def user() -> Cpu:
    """A program in ring 3, and a TSS with a stack of ring 0."""
    cpu = Cpu()
    cpu.state = Registers(
        cpl=3,
        cs=Segment(USER_CODE | 3, 0, 0xFFFF_FFFF, 0x00CF_FB00),
        ss=Segment(USER_DATA | 3, 0, 0xFFFF_FFFF, 0x00CF_F300),
        sp=USER_STACK,
        gdtr=Table(GDT, 0x5F),
    )
    cpu.write(TSS + 4, pack("<IH", INNER_STACK, DATA))
    return cpu


class TestChangeOfRing:
    """6.12.1: the handler in an inner ring has the stack that the TSS names."""

    def test_pushes_ss_and_esp_first(self, user: Cpu) -> None:
        user.gate(0x21)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.stack(5) == (0x1234, USER_CODE | 3, 2 | IF, USER_STACK, USER_DATA | 3)
        assert user.state.sp == INNER_STACK - 20
        assert (user.state.cs.selector, user.state.ss.selector, user.state.cpl) == (CODE, DATA, 0)

    def test_the_error_code_is_on_top(self, user: Cpu) -> None:
        user.gate(14)
        deliver(user, exception(14, 7))
        assert user.stack(6) == (7, 0x1234, USER_CODE | 3, 2 | IF | RF, USER_STACK, USER_DATA | 3)

    def test_a_16_bit_gate_pushes_words(self, user: Cpu) -> None:
        user.gate(0x21, kind=0x86)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.stack(5, "H") == (0x1234, USER_CODE | 3, 2 | IF, USER_STACK, USER_DATA | 3)

    def test_a_16_bit_tss_has_words(self, user: Cpu) -> None:
        user.state.tr = Segment(TSS_SELECTOR, TSS, 0x2B, TSS_16_BUSY)
        user.write(TSS + 2, pack("<HH", INNER_STACK - 0x100, DATA))
        user.gate(0x21)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.state.sp == INNER_STACK - 0x100 - 20

    def test_a_conforming_handler_stays_in_the_ring(self, user: Cpu) -> None:
        user.gate(0x21, selector=CONFORMING)
        deliver(user, Event(0x21, EXTERNAL))
        assert (user.state.cs.selector, user.state.cpl) == (CONFORMING | 3, 3)
        assert user.stack(3) == (0x1234, USER_CODE | 3, 2 | IF)

    def test_a_handler_of_ring_3_pushes_as_the_program(self, user: Cpu) -> None:
        user.gate(0x21, selector=USER_CODE)
        user.gate(14)
        user.absent = range(USER_STACK - 12, USER_STACK)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.stack(2) == (6, 0x1234)
        assert user.cr2 == USER_STACK - 12

    def test_int_n_needs_a_gate_of_the_programs_ring(self, user: Cpu) -> None:
        user.gate(0x40, kind=0xEF)
        user.gate(0x21)
        user.gate(13, 0x6000)
        deliver(user, Event(0x21, SOFTWARE, length=2))
        assert (user.ip, user.stack(2)) == (0x6000, (0x21 * 8 | 2, 0x1232))
        user.state.cpl, user.ip = 3, 0x1234
        deliver(user, Event(0x40, SOFTWARE, length=2))
        assert (user.ip, user.stack(1)) == (0x5000, (0x1234,))

    @pytest.mark.parametrize(
        ("stack", "vector", "error_code"),
        [
            (0, Vector.TS, 1),
            (CODE, Vector.TS, CODE | 1),  # no data
            (USER_DATA | 3, Vector.TS, USER_DATA | 1),  # another ring's
            (DATA | 1, Vector.TS, DATA | 1),  # another RPL
            (0x60, Vector.TS, 0x60 | 1),  # behind the GDT
            (ABSENT_DATA, Vector.SS, ABSENT_DATA | 1),
        ],
    )
    def test_the_stack_in_the_tss_is_checked(self, user: Cpu, stack: int, vector: int, error_code: int) -> None:
        user.write(TSS + 4, pack("<IH", INNER_STACK, stack))
        user.gate(0x21)
        user.gate(vector, 0x6000, CONFORMING)
        deliver(user, Event(0x21, EXTERNAL))
        assert (user.ip, user.stack(2)) == (0x6000, (error_code, 0x1234))

    def test_a_tss_that_is_too_short_is_an_invalid_tss(self, user: Cpu) -> None:
        user.state.tr = replace(TR, limit=8)
        user.gate(0x21)
        user.gate(Vector.TS, 0x6000, CONFORMING)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.stack(2) == (TSS_SELECTOR | 1, 0x1234)

    def test_an_inner_stack_without_room_is_a_stack_fault_with_its_selector(self, user: Cpu) -> None:
        user.write(TSS + 4, pack("<IH", 16, DATA))
        user.gate(0x21)
        user.gate(Vector.SS, 0x6000, CONFORMING)
        deliver(user, Event(0x21, EXTERNAL))
        assert user.stack(2) == (DATA | 1, 0x1234)


class TestChangeOfRingInLongMode:
    """6.14.2 and 6.14.4"""

    @pytest.fixture
    def user64(self, user: Cpu) -> Cpu:
        user.state = replace(
            user.state,
            long_mode=True,
            cs=Segment(USER_CODE_64 | 3, 0, 0xFFFF_FFFF, 0x00AF_FB00),
            idtr=Table(IDT, 0xFFF),
        )
        user.write(TSS + 4, pack("<Q", INNER_STACK + 8))
        return user

    def test_the_stack_is_rsp0_aligned_and_ss_is_null(self, user64: Cpu) -> None:
        user64.gate64(0x21, 0x5000)
        deliver(user64, Event(0x21, EXTERNAL))
        assert user64.state.sp == INNER_STACK - 40
        assert user64.stack(5, "Q") == (0x1234, USER_CODE_64 | 3, 2 | IF, USER_STACK, USER_DATA | 3)
        assert (user64.state.ss.selector, user64.state.ss.dpl, user64.state.cpl) == (0, 0, 0)

    def test_an_interrupt_stack_goes_before_rsp0(self, user64: Cpu) -> None:
        user64.write(TSS + 0x24, pack("<Q", 0x7000))
        user64.gate64(0x21, 0x5000, ist=1)
        deliver(user64, Event(0x21, EXTERNAL))
        assert user64.state.sp == 0x7000 - 40
        assert user64.state.ss.selector == 0

    def test_a_stack_pointer_that_is_not_canonical_is_a_stack_fault(self, user64: Cpu) -> None:
        user64.write(TSS + 4, pack("<Q", 1 << 47))
        user64.gate64(0x21, 0x5000)
        user64.gate64(Vector.SS, 0x6000, CONFORMING_64)
        deliver(user64, Event(0x21, EXTERNAL))
        assert (user64.ip, user64.stack(1, "Q")) == (0x6000, (1,))

    def test_a_tss_that_is_too_short_is_an_invalid_tss(self, user64: Cpu) -> None:
        user64.state.tr = replace(TR, limit=10)
        user64.gate64(0x21, 0x5000)
        user64.gate64(Vector.TS, 0x6000, CONFORMING_64)
        deliver(user64, Event(0x21, EXTERNAL))
        assert user64.stack(1, "Q") == (TSS_SELECTOR | 1,)


class TestSoftwareInterruptsThatFault:
    """The fault returns to the INT itself; the INT's own frame returns to the next instruction."""

    @pytest.mark.parametrize(("vector", "length"), [(0x21, 2), (3, 1), (4, 1)])
    def test_the_faults_frame_has_the_ints_address(self, vector: int, length: int) -> None:
        cpu = Cpu()
        cpu.gate(vector, selector=ABSENT)
        cpu.gate(Vector.NP, 0x6000)
        deliver(cpu, Event(vector, SOFTWARE, length=length))
        assert cpu.ip == 0x6000
        assert cpu.stack(3)[:2] == (ABSENT, 0x1234 - length)

    def test_an_int_that_does_not_fault_has_the_next_address(self) -> None:
        cpu = Cpu()
        cpu.gate(0x21, 0x5000)
        deliver(cpu, Event(0x21, SOFTWARE, length=2))
        assert cpu.stack(1) == (0x1234,)

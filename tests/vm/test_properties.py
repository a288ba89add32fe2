"""Properties of every sequence of operations, and of every state that a VM accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from irqchipd.chips.i8259 import I8259
from irqchipd.chips.ioapic import IoapicState
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, InterruptPending
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.x86.routing import DEFAULT_ROUTES, ChipId
from tests.vm.operations import (
    SOURCES,
    Machine,
    Operation,
    acks,
    bits,
    entries,
    ioapic_structs,
    lapic_structs,
    lines,
    operations,
    pic_structs,
    raw_restores,
    restore,
    vectors,
)
from tests.vm.pc import EOI, LEVEL, PRIMARY, REMOTE_IRR, SECONDARY, Pc

quick = settings(max_examples=200)
sequences = st.lists(operations, max_size=30)


# States.


@quick
@example([("irq_line", (8, True, 0)), ("pio_write", (0, 0x20, 1, 0x10))])
@given(sequences)
def test_a_restored_pic_and_local_apic_equal_the_saved_ones(history: list[Operation]) -> None:
    machine = Machine()
    machine.apply_all(history)
    # KVM: i8259.c pic_update_irq, the primary samples the secondary anew; ICW1 may have cleared that input.
    machine.vm.set_irqchip(ChipId.PIC_PRIMARY, machine.vm.get_irqchip(ChipId.PIC_PRIMARY).pack())
    before = machine.state()
    for chip in (ChipId.PIC_PRIMARY, ChipId.PIC_SECONDARY):
        state = machine.vm.get_irqchip(chip)
        machine.vm.set_irqchip(chip, state.pack())
        assert machine.vm.get_irqchip(chip) == state
    for vcpu in machine.vm.describe().vcpus:
        machine.vm.set_lapic(vcpu, machine.vm.get_lapic(vcpu).pack())
    _, *rest = machine.state()
    assert rest == list(before[1:])


@quick
@given(sequences)
def test_a_restored_ioapic_equals_the_saved_one_except_for_what_it_delivers(history: list[Operation]) -> None:
    machine = Machine()
    machine.apply_all(history)
    state = machine.vm.get_irqchip(ChipId.IOAPIC)
    assert isinstance(state, IoapicState)
    idle = replace(state, irr=0)
    machine.vm.set_irqchip(ChipId.IOAPIC, idle.pack())
    assert machine.vm.get_irqchip(ChipId.IOAPIC) == idle


@quick
@given(sequences, st.lists(acks | lines, max_size=20))
def test_a_copy_of_an_idle_vm_goes_on_as_the_vm_itself_would(history: list[Operation], future: list[Operation]) -> None:
    """A state has neither the lines nor the IOAPIC's hidden record of edges, so at the copy all lines are low."""
    machine, copy = Machine(), Machine()
    machine.apply_all(history)
    machine.apply_all([("irq_line", (gsi, False, source)) for gsi in range(27) for source in range(SOURCES)])
    for number in range(1, SOURCES):
        machine.apply(("close_source", (number,)))
    machine.vm.set_routing(DEFAULT_ROUTES)
    for gsi in range(24):
        machine.line(gsi, 0)
    restore(machine.vm, machine.vm)
    restore(copy.vm, machine.vm)
    assert copy.apply_all(future) == machine.apply_all(future)
    assert copy.state() == machine.state()


@quick
@given(pic_structs, ioapic_structs, lapic_structs)
def test_every_structure_is_a_state_and_unpacks_to_itself(pic: bytes, io: bytes, local: bytes) -> None:
    assert I8259.unpack(pic).pack() == pic
    assert IoapicState.unpack(io).pack() == io
    registers = LapicRegisters.unpack(local)
    packed = bytearray(registers.pack())
    for worked_out in (slice(Reg.PPR, Reg.PPR + 4), slice(Reg.TIMER_CURRENT_COUNT, Reg.TIMER_CURRENT_COUNT + 4)):
        packed[worked_out] = local[worked_out]
    assert packed == local
    assert LapicRegisters.unpack(registers.pack()).pack() == registers.pack()


# After restoring any state, operations may be refused but never fail.


@settings(max_examples=400)
@given(st.lists(raw_restores, min_size=1, max_size=5), st.lists(operations | raw_restores, max_size=30))
def test_no_restored_state_makes_a_later_operation_fail(states: list[Operation], future: list[Operation]) -> None:
    machine = Machine()
    assert machine.apply_all(states) == [None] * len(states)
    machine.apply_all(future)
    machine.state()
    for vcpu in machine.vm.describe().vcpus:
        assert machine.take(vcpu) in {None, *range(256)}
        for register in range(0, 0x400, 4):
            machine.vm.mmio_read(vcpu, LAPIC_BASE + register, 4)


REFUSED: list[Operation] = [
    ("pio_read", (0, 0x20, 3)),
    ("pio_write", (0, 0x20, 1, 0x100)),
    ("pio_write", (5, 0x20, 1, 0x11)),
    ("mmio_read", (0, 0xFEE0_0000, 5)),
    ("mmio_write", (0, 0xFEE0_0080, 4, 1 << 32)),
    ("mmio_write", (5, 0xFEE0_00B0, 4, 0)),
    ("ack_interrupt", (5,)),
    ("signal_msi", (0xFEE0_0000, 0x31, 2)),
    ("set_routing", ([PinRoute(0, 2, 0), PinRoute(0, 2, 1)],)),
    ("set_routing", ([PinRoute(4096, 2, 0)],)),
    ("set_routing", ([MsiRoute(0, 0, 0, flags=2)],)),
    ("set_irqchip", (3, bytes(16))),
    ("set_irqchip", (0, b"\xff" * 15)),
    ("set_irqchip", (2, b"\xff" * 217)),
    ("set_irqchip", (1, IoapicState())),
    ("set_lapic", (0, b"\xff" * 1025)),
    ("set_lapic", (5, b"\xff" * 1024)),
    ("get_irqchip", (-1,)),
    ("get_lapic", (2,)),
    ("create_irqchip", ()),
    ("create_vcpu", (0,)),
    ("create_vcpu", (4096,)),
]


@quick
@given(sequences, st.lists(st.sampled_from(REFUSED), min_size=1, max_size=8))
def test_what_is_refused_changes_nothing(history: list[Operation], refused: list[Operation]) -> None:
    machine, other = Machine(), Machine()
    assert machine.apply_all(history) == other.apply_all(history)
    before = machine.state()
    for name, arguments in refused:
        with pytest.raises(VmError):
            getattr(machine.vm, name)(*arguments)
    assert machine.state() == before
    # Nor may a refused operation change anything that only shows later.
    everything: list[Operation] = [("irq_line", (gsi, level, 0)) for gsi in range(24) for level in (True, False)]
    assert machine.apply_all(everything) == other.apply_all(everything)
    assert machine.state() == other.state()


@quick
@given(st.lists(operations | raw_restores, max_size=40))
def test_the_same_operations_give_the_same_answers_and_the_same_state(history: list[Operation]) -> None:
    one, two = Machine(), Machine()
    assert one.apply_all(history) == two.apply_all(history)
    assert one.state() == two.state()


# Wake-ups.


@quick
@given(st.lists(lines | lines | acks | acks | operations | raw_restores, max_size=40))
def test_a_listener_is_notified_whenever_an_interrupt_becomes_pending(history: list[Operation]) -> None:
    machine = Machine()
    machine.lapic_write(1, Reg.LVT_LINT0, 0x700)
    told: list[Event] = []
    machine.vm.subscribe(machine.vm.describe().vcpus, told.append)
    cpus = machine.vm._pc.cpus
    for operation in history:
        before = {cpu.id for cpu in cpus if cpu.has_interrupt()}
        told.clear()
        result = machine.apply(operation)
        if operation[0] == "ack_interrupt" and isinstance(result, tuple):
            before -= {*operation[1]}  # what is left has an event of its own
        after = {cpu.id for cpu in cpus if cpu.has_interrupt()}
        pending = [event.vcpu for event in told if isinstance(event, InterruptPending)]
        if operation[0] in ("write_entry", "close_source"):  # these are several operations in one
            assert set(pending) >= after - before
        else:
            assert sorted(pending) == sorted(after - before)


# Lines.


closings = st.tuples(st.just("close_source"), st.tuples(st.integers(1, SOURCES - 1)))


@quick
@given(st.lists(lines | lines | lines | closings, max_size=60))
def test_a_pin_is_high_exactly_while_some_source_drives_it(history: list[Operation]) -> None:
    machine = Machine()
    machine.mask_pics()
    driven: set[tuple[int, int]] = set()
    for name, arguments in history:
        machine.apply((name, arguments))
        if name == "close_source":
            driven = {(gsi, source) for gsi, source in driven if source != arguments[0]}
        else:
            gsi, level, source = arguments
            assert isinstance(gsi, int)
            assert isinstance(source, int)
            driven = driven | {(gsi, source)} if level else driven - {(gsi, source)}
        # At reset every pin of the IOAPIC is masked, and a masked pin's request is its level.
        state = machine.vm.get_irqchip(ChipId.IOAPIC)
        assert {pin for pin in range(24) if state.irr >> pin & 1} == {gsi for gsi, _ in driven if gsi < 24}
    listed = {(gsi, source.number) for source in machine.vm.describe().sources for gsi in source.asserted}
    assert listed == {(gsi, source) for gsi, source in driven if source}


# The PICs.


@quick
@given(st.lists(operations | raw_restores, max_size=40))
def test_the_pic_gives_a_vector_exactly_while_its_output_is_high(history: list[Operation]) -> None:
    machine = Machine()
    machine.apply_all(history)
    machine.lapic_write(0, Reg.SVR, 0x1FF)
    machine.lapic_write(0, Reg.LVT_LINT0, 0x700)
    pic = machine.vm._pc.pic
    assert pic is not None
    for _ in range(20):
        output, bases = pic.output, (pic.primary.irq_base, pic.secondary.irq_base)
        taken = machine.vm.ack_interrupt(0, lapic=False)
        assert (taken is not None) == output
        if taken is None:
            break
        assert any((taken[0] - base) & 0xFF < 8 for base in bases)


ORDER = [0, 1, *range(8, 16), 3, 4, 5, 6, 7]  # line 2 is the secondary


@quick
@given(st.lists(st.sampled_from(ORDER) | st.just("serve"), max_size=60))
def test_edges_are_served_by_priority_each_once_and_a_higher_one_interrupts(script: list[int | str]) -> None:
    pc = Pc()
    pc.initialise_pics()
    pending: set[int] = set()
    service: list[int] = []
    for step in [*script, *["serve"] * 40]:
        if isinstance(step, int):
            pc.line(step, 1, 0)
            pending.add(step)
            continue
        vector = pc.take()
        best = min(pending, key=ORDER.index, default=None)
        # Without the special fully nested mode the secondary's lines do not interrupt each other.
        rank = [2 if line >= 8 else ORDER.index(line) if line < 2 else line for line in [*service, best or 0]]
        if best is not None and (not service or rank[-1] < rank[-2]):
            assert vector == (SECONDARY + best - 8 if best >= 8 else PRIMARY + best)
            pending.remove(best)
            service.append(best)
            continue
        assert vector is None
        if service:
            line = service.pop()
            if line >= 8:
                pc.out(0xA0, EOI)
            pc.out(0x20, EOI)
    assert not pending


# Local APICs and the IOAPIC.


@quick
@given(st.lists(vectors, max_size=20), bits(8))
def test_a_local_apic_gives_each_vector_above_its_priority_once_and_the_highest_first(
    sent: list[int], priority: int
) -> None:
    pc = Pc()
    pc.lapic_write(0, Reg.TPR, priority)
    for vector in sent:
        assert pc.vm.signal_msi(0xFEE0_0000, vector) == 1
    assert pc.serve_all() == sorted({vector for vector in sent if vector >> 4 > priority >> 4}, reverse=True)


@quick
@given(st.lists(lines, max_size=40))
def test_every_high_level_is_served_and_none_after_it_was_lowered(
    history: list[Operation],
) -> None:
    machine = Machine()
    machine.mask_pics()
    for pin in range(24):
        machine.program(pin, LEVEL | 0x40 + pin)
    machine.apply_all(history)
    state = machine.vm.get_irqchip(ChipId.IOAPIC)
    high = {pin for pin in range(24) if state.irr >> pin & 1}
    served = []
    while (vector := machine.take()) is not None:
        served.append(vector - 0x40)
        for source in machine.sources:
            machine.line(served[-1], 0, source=source)
        machine.eoi()
    raised = {arguments[0] for _, arguments in history if arguments[1]}
    assert high <= set(served) <= raised
    assert len(served) == len(set(served))
    assert not any(machine.entry(pin) & REMOTE_IRR for pin in range(24))


@quick
@given(st.integers(0, 23), entries, st.booleans())
def test_an_entry_reads_back_as_written_except_for_read_only_bits(pin: int, entry: int, high: bool) -> None:
    pc = Pc()
    pc.line(pin, high)
    pc.program(pin, entry)
    remote_irr = pc.entry(pin) & REMOTE_IRR
    assert pc.entry(pin) == entry & ~(REMOTE_IRR | 1 << 12) | remote_irr
    assert not remote_irr or (entry & LEVEL and high)

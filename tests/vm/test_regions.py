"""Regions: bus ranges that a line source owns and answers. KVM: kvm_main.c kvm_io_bus_*, eventfd.c ioeventfd_*."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchipd.observe.observer import Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Doorbell, Event, RegionAccess, RegionsLost
from irqchipd.vm.regions import BARRED_PERIODS, MAX_DEVICES, MAX_REGION_ACCESSES, Access, Space
from irqchipd.vm.sources import LineSource
from irqchipd.vm.x86.machine import X86Vm

PIO, MMIO = Space.PIO, Space.MMIO
MS = 1_000_000
LIMIT = 20 * MS


class Owner:
    """A line source, and the events it receives."""

    def __init__(self, vm: X86Vm) -> None:
        self.vm = vm
        self.source = vm.open_source("owner")
        self.events: list[Event] = []
        self.lost = False

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RegionsLost):
            self.lost = True

    def register(self, space: int, start: int, length: int, **what: int | None) -> None:
        doorbell, datamatch = bool(what.get("doorbell")), what.get("datamatch")
        self.vm.register_region(self.source, space, start, length, self.hear, doorbell=doorbell, datamatch=datamatch)

    def complete(self, access: Access, value: int = 0) -> bool:
        return self.vm.complete_access(self.source, access.number, value)


@pytest.fixture
def vm() -> X86Vm:
    vm = X86Vm("test", access_ns=LIMIT)
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


def move(vm: X86Vm, nanoseconds: int) -> None:
    """Let the host's time pass."""
    vm.agenda.deadlines.move(nanoseconds)


@pytest.fixture
def owner(vm: X86Vm) -> Owner:
    return Owner(vm)


def forwarded(access: Callable[[], object]) -> Access:
    forwarded = access()
    assert isinstance(forwarded, Access)
    return forwarded


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(VmError) as caught:
        call()
    return caught.value.number


def test_a_read_goes_to_the_owner_and_its_answer_completes_it(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    access = forwarded(lambda: vm.pio_read(0, 0x3FD, 1))
    assert owner.events == [RegionAccess(access.number, 0, PIO, 0x3FD, 1, False, 0)]
    assert not access.done
    done: list[str] = []
    access.when_done(lambda: done.append("completed"))
    assert owner.complete(access, 0x60)
    assert done == ["completed"]
    assert access.result() == (0x60, True)
    assert not owner.complete(access, 0x61), "it is answered once"
    access.when_done(lambda: done.append("late"))
    assert done == ["completed", "late"], "a later caller is notified at once"


def test_a_write_goes_to_the_owner_and_waits_too(vm: X86Vm, owner: Owner) -> None:
    owner.register(MMIO, 0xD000_0000, 0x1000)
    access = forwarded(lambda: vm.mmio_write(0, 0xD000_0010, 8, 0x1122_3344_5566_7788))
    assert owner.events == [RegionAccess(access.number, 0, MMIO, 0xD000_0010, 8, True, 0x1122_3344_5566_7788)]
    assert owner.complete(access, 99)
    assert access.result() == (0, True)


def test_an_access_that_exceeds_the_region_is_unclaimed(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    owner.register(PIO, 0x400, 8)
    assert vm.pio_read(0, 0x3FE, 4) is None
    assert vm.pio_read(0, 0x3F7, 2) is None
    assert not owner.events


@pytest.mark.parametrize(
    ("space", "start", "length"),
    [
        (PIO, 0x3F8, 8),
        (PIO, 0x3F0, 9),
        (PIO, 0x3FF, 4),
        (PIO, 0x3FA, 1),
        (PIO, 0x20, 1),  # the primary PIC
        (MMIO, 0xFEC0_0080, 4),  # the IOAPIC
    ],
)
def test_a_claimed_range_is_eexist(vm: X86Vm, owner: Owner, space: Space, start: int, length: int) -> None:
    owner.register(PIO, 0x3F8, 8)
    assert refused(lambda: Owner(vm).register(space, start, length)) == errno.EEXIST


def test_a_chip_finds_its_ports_claimed() -> None:
    vm = X86Vm("test")
    owner = Owner(vm)
    owner.register(PIO, 0x40, 4)
    owner.register(PIO, 0xA1, 1)
    assert refused(vm.create_irqchip) == errno.EEXIST
    vm.unregister_region(owner.source, PIO, 0xA1)
    vm.create_irqchip()
    assert refused(vm.create_pit) == errno.EEXIST


@pytest.mark.parametrize(
    ("space", "start", "length", "what"),
    [
        (0, 0, 1, {}),
        (3, 0, 1, {}),
        (PIO, 0, 0, {}),
        (PIO, 0x10000, 1, {}),
        (PIO, 0xFFFF, 2, {}),
        (MMIO, (1 << 64) - 8, 9, {}),
        (PIO, 0, 1, {"datamatch": 0}),
        (PIO, 0, 1, {"doorbell": 1, "datamatch": 256}),
        (PIO, 0, 3, {"doorbell": 1, "datamatch": 0}),
    ],
)
def test_an_invalid_region_is_einval(owner: Owner, space: int, start: int, length: int, what: dict[str, int]) -> None:
    assert refused(lambda: owner.register(space, start, length, **what)) == errno.EINVAL


def test_a_bus_has_1000_devices(vm: X86Vm, owner: Owner) -> None:
    for number in range(MAX_DEVICES - 3):  # the PICs have three
        owner.register(PIO, 0x1000 + number, 1)
    assert refused(lambda: owner.register(PIO, 0x8000, 1)) == errno.ENOSPC
    owner.register(MMIO, 0x8000, 1)
    vm.unregister_region(owner.source, PIO, 0x1000)
    owner.register(PIO, 0x8000, 1)


def test_every_doorbell_is_a_device_of_the_bus(vm: X86Vm, owner: Owner) -> None:
    already = 3  # the PICs'
    for value in range(MAX_DEVICES - already):
        owner.register(PIO, 0x300, 4, doorbell=True, datamatch=value)
    assert refused(lambda: owner.register(PIO, 0x300, 4, doorbell=True, datamatch=MAX_DEVICES)) == errno.ENOSPC
    vm.unregister_region(owner.source, PIO, 0x300, 7)
    owner.register(PIO, 0x400, 4)
    assert refused(lambda: owner.register(PIO, 0x300, 4, doorbell=True, datamatch=7)) == errno.ENOSPC
    vm.close_source(owner.source)
    Owner(vm).register(PIO, 0x300, 4)


def test_another_owners_region_is_enoent(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    other = Owner(vm)
    assert refused(lambda: vm.unregister_region(other.source, PIO, 0x3F8)) == errno.ENOENT
    assert refused(lambda: vm.unregister_region(owner.source, MMIO, 0x3F8)) == errno.ENOENT
    assert refused(lambda: vm.unregister_region(owner.source, PIO, 0x3F9)) == errno.ENOENT
    access = forwarded(lambda: vm.pio_read(0, 0x3F8, 1))
    assert not vm.complete_access(other.source, access.number, 1)
    assert not access.done


def test_an_answer_out_of_range_is_refused_and_the_vcpu_waits_on(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    access = forwarded(lambda: vm.pio_read(0, 0x3F8, 2))
    assert refused(lambda: owner.complete(access, 0x1_0000)) == errno.EINVAL
    assert not access.done
    assert owner.complete(access, 0xFFFF)


@pytest.mark.parametrize("how", ["ends", "gives it up"])
def test_an_owner_that_leaves_answers_with_all_ones(vm: X86Vm, owner: Owner, how: str) -> None:
    owner.register(PIO, 0x3F8, 8)
    read = forwarded(lambda: vm.pio_read(0, 0x3F8, 2))
    write = forwarded(lambda: vm.pio_write(0, 0x3F8, 1, 7))
    if how == "ends":
        vm.close_source(owner.source)
    else:
        vm.unregister_region(owner.source, PIO, 0x3F8)
    assert read.result() == (0xFFFF, False)
    assert write.result() == (0, False)
    assert vm.pio_read(0, 0x3F8, 2) is None, "the region is gone"
    Owner(vm).register(PIO, 0x3F8, 8)


def test_an_owner_that_does_not_answer_in_time_loses_its_regions(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    owner.register(MMIO, 0xD000_0000, 4)
    answered = forwarded(lambda: vm.pio_read(0, 0x3F8, 1))
    owner.complete(answered, 5)
    late = forwarded(lambda: vm.pio_read(0, 0x3F9, 1))
    later = forwarded(lambda: vm.mmio_read(0, 0xD000_0000, 8 // 2))
    move(vm, LIMIT - 1)
    assert not owner.lost
    move(vm, 1)
    assert owner.events[-1] == RegionsLost(PIO, 0x3F9)
    assert late.result() == (0xFF, False)
    assert later.result() == (0xFFFF_FFFF, False)
    assert vm.describe().sources[0].regions == []
    assert vm.irq_line(4, True, owner.source) >= -1, "it is still a line source"
    owner.register(PIO, 0x3F8, 8)


def slow_owner(*, of_one_session: bool, answers_first: bool = True) -> tuple[Owner, list[Access]]:
    """An owner that needs 60 of the 100 ms for each of five accesses, and may skip the first."""
    vm = X86Vm("slow", access_ns=100 * MS)
    vm.create_irqchip()
    vm.create_vcpu(0)
    owner, session = Owner(vm), vm.open_source("vcpu")
    owner.register(PIO, 0x300, 4)
    by = session if of_one_session else None
    accesses = [forwarded(lambda: vm.pio_read(0, 0x300, 1, by)) for _ in range(5)]
    for access in accesses if answers_first else accesses[1:]:
        move(vm, 60 * MS)
        owner.complete(access, 7)
    return owner, accesses


def test_an_accesss_time_begins_when_it_is_forwarded_even_if_others_wait() -> None:
    owner, accesses = slow_owner(of_one_session=False)
    assert owner.lost
    assert accesses[-1].result() == (0xFF, False)
    assert not owner.complete(accesses[-1], 7)


def test_in_a_string_of_accesses_each_time_begins_at_the_previous_answer() -> None:
    owner, accesses = slow_owner(of_one_session=True)
    assert [access.result() for access in accesses] == [(7, True)] * 5
    assert not owner.lost


def test_answers_to_others_do_not_make_up_for_the_first_of_a_string() -> None:
    owner, accesses = slow_owner(of_one_session=True, answers_first=False)
    assert owner.lost
    assert accesses[0].result() == (0xFF, False)


def lose(vm: X86Vm, owner: Owner, port: int) -> None:
    """Let an owner miss the time for an access."""
    owner.lost = False
    forwarded(lambda: vm.pio_read(0, port, 1))
    move(vm, LIMIT)
    assert owner.lost


def test_a_range_that_is_lost_twice_cannot_be_claimed_for_a_while(vm: X86Vm, owner: Owner) -> None:
    for _ in range(2):
        owner.register(PIO, 0x300, 8)
        lose(vm, owner, 0x301)
    another = Owner(vm)
    for who, start in ((owner, 0x300), (another, 0x307), (another, 0x2F9)):
        assert refused(partial(who.register, PIO, start, 8)) == errno.EBUSY
    another.register(PIO, 0x308, 8)
    another.register(MMIO, 0x300, 8)
    another.register(PIO, 0x300, 8, doorbell=1)  # no vCPU waits for a doorbell
    vm.unregister_region(another.source, PIO, 0x300)
    assert vm.pio_read(0, 0x301, 1) is None
    move(vm, BARRED_PERIODS * LIMIT)
    owner.register(PIO, 0x300, 8)
    assert owner.complete(forwarded(lambda: vm.pio_read(0, 0x301, 1)), 5)


def test_an_owner_that_never_answers_holds_a_vcpu_a_sixteenth_of_the_time(vm: X86Vm, owner: Owner) -> None:
    losses = 0
    while vm.agenda.deadlines.now() < 200 * LIMIT:
        try:
            owner.register(PIO, 0x300, 8)
        except VmError:
            move(vm, LIMIT // 5)
        else:
            lose(vm, owner, 0x300)
            losses += 1
    assert losses <= 2 * 8


def test_losses_long_ago_are_forgiven(vm: X86Vm, owner: Owner) -> None:
    for _ in range(3):
        owner.register(PIO, 0x300, 8)
        lose(vm, owner, 0x300)
        move(vm, BARRED_PERIODS * LIMIT)
    owner.register(PIO, 0x300, 8)


# The local APICs' page.


@pytest.mark.parametrize(
    ("start", "length"), [(0xFEE0_0000, 1), (0xFEE0_0FFF, 1), (0xFEDF_FFFF, 2), (0xFEC0_1000, 0x100_0000)]
)
@pytest.mark.parametrize("doorbell", [0, 1])
def test_the_local_apics_page_cannot_be_claimed(owner: Owner, start: int, length: int, doorbell: int) -> None:
    assert refused(lambda: owner.register(MMIO, start, length, doorbell=doorbell)) == errno.EEXIST
    owner.register(MMIO, 0xFEDF_F000, 0x1000)
    owner.register(MMIO, 0xFEE0_1000, 0x1000)


def test_without_local_apics_the_page_is_free_and_a_region_there_excludes_them() -> None:
    vm = X86Vm("test")
    owner = Owner(vm)
    owner.register(MMIO, 0xFEE0_0000, 0x1000)
    assert refused(vm.create_irqchip) == errno.EEXIST
    assert refused(lambda: vm.enable_cap(121)) == errno.EEXIST
    assert vm.describe().irqchip_mode == "none"
    vm.unregister_region(owner.source, MMIO, 0xFEE0_0000)
    vm.enable_cap(121)
    assert refused(lambda: owner.register(MMIO, 0xFEE0_0000, 0x1000)) == errno.EEXIST


def test_a_local_apic_that_moves_over_a_region_hides_it_from_its_vcpu(vm: X86Vm, owner: Owner) -> None:
    vm.create_vcpu(1)
    owner.register(MMIO, 0xD000_0000, 0x1000)
    assert vm.msr_write(0, 0x1B, 0xD000_0900) == 0
    assert vm.mmio_read(0, 0xD000_0030, 4) == 0x0005_0014
    assert forwarded(lambda: vm.mmio_read(1, 0xD000_0030, 4)).region.source is owner.source


def test_an_owner_that_leaves_while_its_time_is_up_is_no_failure(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x300, 4)
    forwarded(lambda: vm.pio_read(0, 0x300, 1))
    alarm = vm._board.regions._owners[owner.source].alarm
    assert alarm is not None
    ring = alarm.ring  # the scheduler's thread has taken the alarm, and waits for the VM's lock
    vm.close_source(owner.source)
    ring()


def test_a_prompt_owner_keeps_its_regions() -> None:
    vm = X86Vm("test", access_ns=LIMIT)
    vm.create_vcpu(0)
    owner = Owner(vm)
    owner.register(PIO, 0x3F8, 8)
    for _ in range(100):
        access = forwarded(lambda: vm.pio_read(0, 0x3F8, 1))
        move(vm, LIMIT - 1)
        assert owner.complete(access, 1)
    assert not owner.lost


def test_owners_are_notified_of_the_vms_end(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    access = forwarded(lambda: vm.pio_read(0, 0x3F8, 1))
    vm.delete()
    assert refused(access.result) == errno.ENOENT


def test_an_access_to_ones_own_region_is_edeadlk(vm: X86Vm, owner: Owner) -> None:
    owner.register(PIO, 0x3F8, 8)
    assert refused(lambda: vm.pio_read(0, 0x3F8, 1, owner.source)) == errno.EDEADLK
    assert refused(lambda: vm.pio_write(0, 0x3F8, 1, 0, owner.source)) == errno.EDEADLK
    assert not owner.events


def test_waiting_accesses_are_bounded() -> None:
    vm = X86Vm("test")
    vm.create_vcpu(0)
    owner = Owner(vm)
    owner.register(PIO, 0x3F8, 8)
    waiting = [forwarded(lambda: vm.pio_read(0, 0x3F8, 1)) for _ in range(MAX_REGION_ACCESSES)]
    assert refused(lambda: vm.pio_read(0, 0x3F8, 1)) == errno.ENOSPC
    owner.complete(waiting[500])
    forwarded(lambda: vm.pio_read(0, 0x3F8, 1))


def test_a_doorbell_is_reported_and_the_vcpu_does_not_wait(vm: X86Vm, owner: Owner) -> None:
    owner.register(MMIO, 0xD000_0000, 0x100, doorbell=1)
    assert vm.mmio_write(0, 0xD000_0004, 4, 7)
    assert owner.events == [Doorbell(MMIO, 0xD000_0004, 4, 7)]
    assert vm.mmio_read(0, 0xD000_0004, 4) is None, "as of an ioeventfd, which takes writes only"


def test_doorbells_of_one_address_ring_by_their_values(vm: X86Vm, owner: Owner) -> None:
    other = Owner(vm)
    owner.register(PIO, 0xC010, 2, doorbell=1, datamatch=0)
    other.register(PIO, 0xC010, 2, doorbell=1, datamatch=1)
    assert vm.pio_write(0, 0xC010, 2, 1)
    assert other.events == [Doorbell(PIO, 0xC010, 2, 1)]
    assert not owner.events
    assert not vm.pio_write(0, 0xC010, 2, 2), "no doorbell has this value"
    assert not vm.pio_write(0, 0xC010, 1, 1), "another length"
    vm.unregister_region(other.source, PIO, 0xC010, 1)
    assert not vm.pio_write(0, 0xC010, 2, 1)
    assert vm.pio_write(0, 0xC010, 2, 0)


@pytest.mark.parametrize("datamatch", [0, None])
def test_doorbells_that_could_ring_together_are_eexist(vm: X86Vm, owner: Owner, datamatch: int | None) -> None:
    owner.register(PIO, 0xC010, 2, doorbell=1, datamatch=0)
    assert refused(lambda: Owner(vm).register(PIO, 0xC010, 2, doorbell=1, datamatch=datamatch)) == errno.EEXIST
    assert refused(lambda: Owner(vm).register(PIO, 0xC011, 1, doorbell=1, datamatch=1)) == errno.EEXIST
    assert refused(lambda: Owner(vm).register(PIO, 0xC010, 2)) == errno.EEXIST


def test_accesses_are_traced_as_a_chips_are(vm: X86Vm, owner: Owner) -> None:
    class Trace(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[bool, int, int, int, int]] = []

        def kvm_pio(self, write: bool, port: int, size: int, value: int, vcpu: int) -> None:
            self.seen.append((write, port, size, value, vcpu))

    trace = Trace()
    vm.attach(trace)
    owner.register(PIO, 0x3F8, 8)
    owner.complete(forwarded(lambda: vm.pio_read(0, 0x3F8, 1)), 0x41)
    owner.complete(forwarded(lambda: vm.pio_write(0, 0x3F8, 1, 0x42)))
    assert trace.seen == [(False, 0x3F8, 1, 0x41, 0), (True, 0x3F8, 1, 0x42, 0)]


def test_a_closed_source_cannot_have_regions(vm: X86Vm, owner: Owner) -> None:
    source: LineSource = owner.source
    vm.close_source(source)
    assert refused(lambda: owner.register(PIO, 0x3F8, 8)) == errno.ENOENT


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.booleans()), max_size=12))
def test_regions_do_not_overlap_and_a_port_belongs_to_the_region_around_it(ranges: list[tuple[int, int, bool]]) -> None:
    vm = X86Vm("test")
    vm.create_vcpu(0)
    owner, claimed = Owner(vm), dict[int, int]()  # by port, the start of its region
    for start, length, stays in ranges:
        ports = range(start, start + length)
        if any(port in claimed for port in ports):
            assert refused(partial(owner.register, PIO, start, length)) == errno.EEXIST
            continue
        owner.register(PIO, start, length)
        if stays:
            claimed |= dict.fromkeys(ports, start)
        else:
            vm.unregister_region(owner.source, PIO, start)
    for port in range(50):
        if port in claimed:
            assert forwarded(partial(vm.pio_read, 0, port, 1)).region.start == claimed[port]
        else:
            assert vm.pio_read(0, port, 1) is None


def test_the_keyboard_controllers_ports_are_free_beside_the_speakers(vm: X86Vm, owner: Owner) -> None:
    vm.create_pit()
    owner.register(PIO, 0x60, 1)
    owner.register(PIO, 0x64, 1)
    assert refused(lambda: owner.register(PIO, 0x61, 1)) == errno.EEXIST
    assert vm.pio_read(0, 0x61, 2) is not None

"""Many threads drive one VM: nothing is lost, and nothing is taken twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue

import pytest

from irqchipd.chips.lapic_registers import Reg
from irqchipd.observe.observer import Observer
from irqchipd.vm.events import InterruptPending
from tests.threads import switch_interval
from tests.vm.pc import LEVEL, Pc, to
from tests.waiting import PATIENCE

DEVICES = 4
PULSES = 100
VCPUS = 2


@pytest.fixture(autouse=True)
def impatient_scheduler() -> Iterator[None]:
    """Switch threads far more often than usual."""
    with switch_interval(1e-6):
        yield


def run_all(*tasks: Callable[[], object]) -> None:
    """Run each task in a thread of its own, and fail if one fails."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        for future in futures:
            future.result(PATIENCE)


class VcpuLoop:
    """A VMM's thread for a vCPU: it waits for a notification, then takes and ends all interrupts."""

    def __init__(self, pc: Pc, vcpu: int, served: Callable[[int], None]) -> None:
        self._pc, self._vcpu, self._served = pc, vcpu, served
        self._told: SimpleQueue[object] = SimpleQueue()
        self._stopped = threading.Event()
        pc.vm.subscribe([vcpu], self._told.put)

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                event = self._told.get(timeout=0.05)
            except Empty:
                continue
            assert event == InterruptPending(self._vcpu)
            while (vector := self._pc.take(self._vcpu)) is not None:
                self._served(vector)
                self._pc.eoi(self._vcpu)

    def stop(self) -> None:
        self._stopped.set()


def test_every_edge_sent_after_the_last_was_served_is_served_once() -> None:
    pc = Pc(VCPUS)
    for device in range(DEVICES):
        pc.program(16 + device, to(device % VCPUS) | 0x40 + 0x10 * device)
    served = [threading.Semaphore(0) for _ in range(DEVICES)]
    counts = [0] * DEVICES

    def note(vector: int) -> None:
        counts[(vector - 0x40) // 0x10] += 1
        served[(vector - 0x40) // 0x10].release()

    loops = [VcpuLoop(pc, vcpu, note) for vcpu in range(VCPUS)]
    running = threading.Barrier(DEVICES)

    def drive(number: int) -> None:
        source = pc.vm.open_source(f"device {number}")
        running.wait(PATIENCE)
        try:
            for _ in range(PULSES):
                assert pc.line(16 + number, 1, 0, source=source) == [1, 1]
                assert served[number].acquire(timeout=PATIENCE / 3), "an interrupt or its wake-up was lost"
        finally:
            pc.vm.close_source(source)
            if running.wait(PATIENCE) == 0:
                for loop in loops:
                    loop.stop()

    run_all(*(loop.run for loop in loops), *(partial(drive, number) for number in range(DEVICES)))
    assert counts == [PULSES] * DEVICES
    assert pc.vm.describe().sources == []
    assert pc.takers() == {}


def test_levels_from_many_sources_on_shared_pins_all_drop_in_the_end() -> None:
    pc = Pc(VCPUS)
    pc.mask_pics()
    for pin in (20, 21):
        pc.program(pin, to(pin % VCPUS) | LEVEL | 0x30 + pin)
    done = threading.Event()

    def device(number: int) -> None:
        for turn in range(PULSES):
            source = pc.vm.open_source(f"device {number}")
            pc.line(20, 1, 0, 1, source=source)
            pc.line(21, turn & 1, 1, source=source)
            pc.vm.close_source(source)

    def vcpu(number: int) -> None:
        while not done.is_set():
            if pc.take(number) is not None:
                pc.eoi(number)

    def devices() -> None:
        try:
            run_all(*(partial(device, number) for number in range(DEVICES)))
        finally:
            done.set()

    run_all(devices, *(partial(vcpu, number) for number in range(VCPUS)))
    for number in range(VCPUS):
        pc.serve_all(number)
    assert pc.vm.describe().sources == []
    assert [bool(pc.entry(pin) & 1 << 14) for pin in (20, 21)] == [False, False]
    assert [pc.lapic_read(number, Reg.ISR + 0x10 * word) for number in range(VCPUS) for word in range(8)] == [0] * 16
    assert pc.line(20, 1, 0) == [1, 1]
    assert pc.takers() == {0: 0x44}


class Dawdler(Observer):
    """Lets other threads run in the middle of every operation, and counts the threads that are inside an operation."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self.seen = self.overlaps = 0

    def _dawdle(self) -> None:
        if self._busy.acquire(blocking=False):
            self.seen += 1
            time.sleep(0.0001)
            self._busy.release()
        else:
            self.overlaps += 1

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:  # noqa: ARG002
        self._dawdle()

    def kvm_mmio(self, write: bool, address: int, size: int, value: int, vcpu: int) -> None:  # noqa: ARG002
        self._dawdle()

    def kvm_msi_set_irq(self, address: int, data: int) -> None:  # noqa: ARG002
        self._dawdle()

    def kvm_inj_virq(self, vcpu: int, vector: int) -> None:  # noqa: ARG002
        self._dawdle()


def test_operations_do_not_overlap() -> None:
    pc, dawdler = Pc(), Dawdler()
    pc.vm.attach(dawdler)
    operations: list[Callable[[], object]] = [
        lambda: pc.line(1, 1, 0),
        lambda: pc.lapic_read(0, Reg.ID),
        lambda: pc.vm.signal_msi(0xFEE0_0000, 0x31),
        pc.take,
    ]

    def repeat(operation: Callable[[], object]) -> None:
        for _ in range(PULSES):
            operation()

    run_all(*(partial(repeat, operation) for operation in operations))
    assert dawdler.seen > 3 * PULSES
    assert dawdler.overlaps == 0


def test_an_interrupt_that_two_threads_would_take_is_taken_once() -> None:
    pc = Pc()
    pc.program(16, 0x41)
    taken: list[int] = []
    turn = threading.Barrier(3)

    def cpu() -> None:
        for _ in range(PULSES):
            turn.wait(PATIENCE)
            if (vector := pc.take()) is not None:
                taken.append(vector)
            turn.wait(PATIENCE)

    def device() -> None:
        for _ in range(PULSES):
            pc.line(16, 1, 0)
            turn.wait(PATIENCE)
            turn.wait(PATIENCE)
            pc.eoi()

    run_all(cpu, cpu, device)
    assert taken == [0x41] * PULSES

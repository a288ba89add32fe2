"""A hundred vCPUs halt and are woken by all kinds of interrupts from many threads; some of the halts are abandoned.

An edge that arrives at a local APIC while its vector is not requested is one interrupt. A halt that is not abandoned
must take it, exactly once. An observer counts the arrivals under the VM's lock; the vCPUs' threads count the takings.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from random import Random

import pytest

from irqchipd.chips.lapic_registers import Reg
from irqchipd.observe.observer import Observer
from irqchipd.timers import Timers
from irqchipd.vm.cpu import Halt
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.vcpu_state import Outcome
from irqchipd.vm.x86.routing import ChipId
from tests.threads import switch_interval
from tests.vm.pc import EOI, LEVEL, MSI, PRIMARY, Pc, to
from tests.waiting import PATIENCE

VCPUS = 100
WAKES = 10_000
SENDERS, WORKERS = 3, 2
ABANDONED = 0.15  # the share of halts that are abandoned before and after they end
PIC_GSI = 5
LEVEL_PINS, EDGE_PINS = (16, 17), (18, 19, 20, 21)
MSI_VECTORS = (0x31, 0x32, 0x41, 0x51, 0x91)
IPI_VECTOR, TIMER_VECTOR, PIN_VECTOR = 0x61, 0xE1, 0x70
IPI_TO_OTHERS = 3 << 18 | 0x4000

# A vCPU and a vector.
Key = tuple[int, int]


class Ledger(Observer):
    """The interrupts that each vCPU has to take, counted under the VM's lock."""

    def __init__(self, pc: Pc) -> None:
        self._cpus = pc.vm._pc.cpus
        self.owed: Counter[Key] = Counter()
        pc.vm.attach(self)

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:  # noqa: ARG002
        lapic = self._cpus[vcpu].lapic
        assert lapic is not None
        if not lapic.irr >> vector & 1:
            self.owed[vcpu, vector] += 1


class Attempt:
    """A halt, which belongs to its vCPU or to the thread that abandons it, whichever claims it first."""

    def __init__(self, vcpu: int) -> None:
        self.vcpu = vcpu
        self.halt: Halt | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)


class Storm:
    """A VM, the threads that interrupt it, and the threads of its vCPUs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.pc = Pc(VCPUS, deadlines=Timers(), real=True)
        self.vm = self.pc.vm
        self.pc.start(*range(VCPUS))
        self.pc.initialise_pics()
        self.vm.set_routing([PinRoute(PIC_GSI, ChipId.PIC_PRIMARY, PIC_GSI), *self._pins()])
        rng = Random(seed)
        for pin in (*LEVEL_PINS, *EDGE_PINS):
            self.pc.program(pin, to(rng.randrange(1, VCPUS)) | (LEVEL if pin in LEVEL_PINS else 0) | PIN_VECTOR + pin)
        for vcpu in range(VCPUS):
            self.pc.lapic_write(vcpu, Reg.TIMER_DIVIDE, 0xB)
            self.pc.lapic_write(vcpu, Reg.LVT_TIMER, TIMER_VECTOR)
        self.ledger = Ledger(self.pc)
        self.pic_owed = self.abandoned = 0
        # What each thread has taken; the counters are per thread, so that no count is lost.
        self.taken: list[Counter[Key]] = []
        self._ends: SimpleQueue[tuple[Attempt, Outcome] | None] = SimpleQueue()
        self._attempts: dict[int, Attempt] = {}
        self._stop = threading.Event()
        self._failures: list[BaseException] = []

    @staticmethod
    def _pins() -> list[PinRoute]:
        return [PinRoute(pin, ChipId.IOAPIC, pin) for pin in (*LEVEL_PINS, *EDGE_PINS)]

    # Threads that interrupt.

    def send(self, number: int) -> None:
        """A device's thread, until it is stopped."""
        rng = Random(self.seed * 10 + number)
        source = self.vm.open_source(f"device {number}")
        pins = [pin for pin in (*LEVEL_PINS, *EDGE_PINS) if pin % SENDERS == number]
        while not self._stop.is_set():
            vcpu = rng.randrange(1, VCPUS)  # vCPU 0 has the PIC, and hardly anything else would wake it
            match rng.randrange(20):
                case 0 | 1 | 2 | 3 | 4 | 5 | 6:
                    self.vm.signal_msi(MSI | vcpu << 12, rng.choice(MSI_VECTORS))
                case 7 | 8 | 9 | 10:
                    # Each thread sends from a vCPU of its own, because the two writes belong together.
                    self.pc.ipi(number, 0x4000 | IPI_VECTOR, destination=vcpu)
                case 11 | 12 | 13:
                    for level in (True, False):
                        self.vm.irq_line(rng.choice(pins), level, source)
                    for pin in pins:
                        self.vm.irq_line(pin, False, source)
                case 14 | 15 | 16:
                    self.pc.lapic_write(vcpu, Reg.TIMER_INITIAL_COUNT, rng.randrange(1, 300_000))
                case 17 | 18 if number == 0:  # one thread, so that its statuses say what was coalesced
                    if self.vm.irq_line(PIC_GSI, True, source) == 1:
                        self.pic_owed += 1
                    self.vm.irq_line(PIC_GSI, False, source)
                case 19 if rng.random() < 0.01:
                    self.pc.ipi(number, IPI_TO_OTHERS | IPI_VECTOR)
                case _:
                    pass
            if rng.random() < 0.02:
                time.sleep(rng.random() / 2000)
        self.vm.close_source(source)

    # Threads that halt.

    def halt(self, vcpu: int) -> None:
        attempt = Attempt(vcpu)
        self._attempts[vcpu] = attempt
        attempt.halt = self.vm.halt(vcpu, lambda outcome: self._ends.put((attempt, outcome)))

    def work(self, number: int) -> None:
        """A thread that runs vCPUs: it takes the interrupt of each ended halt, ends it and halts again."""
        rng = Random(self.seed * 100 + number)
        taken: Counter[Key] = Counter()
        self.taken.append(taken)
        while (end := self._ends.get(timeout=PATIENCE)) is not None:
            attempt, outcome = end
            vcpu = attempt.vcpu
            while attempt.halt is None:  # it ended in another thread before halt() returned
                time.sleep(0)
            if not attempt.claim():
                continue  # it was abandoned, and its vCPU halts again already
            if rng.random() < ABANDONED:
                self.vm.abandon(attempt.halt)
                self.abandoned += 1
            else:
                assert isinstance(outcome, tuple), outcome
                vector, from_pic = outcome
                taken[vcpu, vector] += 1
                if from_pic:
                    assert (vcpu, vector) == (0, PRIMARY + PIC_GSI)
                    self.pc.out(0x20, EOI)
                else:
                    self.pc.eoi(vcpu)
            self.halt(vcpu)

    def abandon_some(self) -> None:
        """A thread that abandons halts, ended or not."""
        rng = Random(self.seed)
        while not self._stop.is_set():
            attempt = self._attempts[rng.randrange(VCPUS)]
            if attempt.halt is not None and attempt.claim():
                self.vm.abandon(attempt.halt)
                self.abandoned += 1
                self.halt(attempt.vcpu)
            time.sleep(rng.random() / 2000)

    # The whole.

    def total(self) -> Counter[Key]:
        return sum((Counter(taken) for taken in list(self.taken)), Counter())

    def owed(self) -> Counter[Key]:
        pic: Counter[Key] = Counter({(0, PRIMARY + PIC_GSI): self.pic_owed})
        return Counter(self.ledger.owed) + pic

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._failures.append(error)
            self._stop.set()

    @contextmanager
    def _running(self, *tasks: Callable[[], None]) -> Iterator[None]:
        threads = [threading.Thread(target=self._guarded, args=(task,), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _until(self, what: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE / 2
        while not what() and not self._failures:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def run(self) -> None:
        """Run until enough was taken, then until nothing is left."""
        for vcpu in range(VCPUS):
            self.halt(vcpu)
        with self._running(*(partial(self.work, number) for number in range(WORKERS))):
            senders = [partial(self.send, number) for number in range(SENDERS)]
            with self._running(self.abandon_some, *senders):
                assert self._until(lambda: sum(taken.total() for taken in self.taken) >= WAKES)
                self._stop.set()
            self._until(lambda: self.vm.describe().next_timer is None and self.total() == self.owed())
            time.sleep(0.02)  # so that a second taking would show
            for _ in range(WORKERS):
                self._ends.put(None)
        assert self._failures == []


@pytest.mark.parametrize("impatient", [False, True], ids=["threads as usual", "threads that switch often"])
def test_every_interrupt_is_taken_once(impatient: bool) -> None:
    seed = time.time_ns() & 0xFFFF_FFFF
    storm = Storm(seed)
    with switch_interval(1e-5) if impatient else nullcontext():
        storm.run()
    taken, owed = storm.total(), storm.owed()
    assert taken.total() >= WAKES, seed
    assert {key: (owed[key], taken[key]) for key in owed | taken if owed[key] != taken[key]} == {}, seed
    assert storm.abandoned > 100
    sources = {vector for _, vector in taken}
    assert sources >= {*MSI_VECTORS, IPI_VECTOR, TIMER_VECTOR, PRIMARY + PIC_GSI}, seed
    assert sources & {PIN_VECTOR + pin for pin in (*LEVEL_PINS, *EDGE_PINS)}
    # Nothing is left: all vCPUs halt, and no interrupt is requested, in service or given back.
    state = storm.vm.save()
    assert not any(vcpu.queued for vcpu in state.vcpus)
    registers = [storm.vm.get_lapic(vcpu) for vcpu in range(VCPUS)]
    assert [(lapic.irr, lapic.isr) for lapic in registers] == [(0, 0)] * VCPUS
    assert all(cpu.halt is not None for cpu in storm.vm._pc.cpus)
    storm.vm.delete()

"""An arm64 vCPU of Unicorn whose interrupt controller and timers are irqchipd's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from irqchip_client._errors import GuestError, InvalidArgument
from irqchip_client._model import MpState, Wake
from irqchip_client.arm64 import affinity
from irqchip_client.unicorn.bus import Bus
from irqchip_client.unicorn.emulator import Unsupported
from irqchip_client.vmm.accesses import Accesses, LocalDevices
from irqchip_client.vmm.adapter import Adapter
from irqchip_client.vmm.exit_stats import HALT, ExitStats
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Arm64Start

from . import psci
from .engine import PHYSICAL_BITS, Engine, Exit, GuestException, RegisterAccess, Vector
from .registers import FIQ, ICC_SRE_EL1, IRQ, ISR_EL1, name

if TYPE_CHECKING:
    from irqchip_client import Vm


class Alone:
    """The power switch of a vCPU that can't turn on the machine's other vCPUs: they are on, or there are none.

    others     the affinities of vCPUs that are on
    turned_off called when the guest turns the machine off or resets it
    """

    def __init__(self, others: tuple[int, ...] = (), turned_off: Callable[[], None] = lambda: None) -> None:
        self._others = others
        self._turned_off = turned_off

    def is_on(self, affinity: int) -> bool | None:
        """Whether a vCPU is on."""
        return True if affinity in self._others else None

    def turn_on(self, affinity: int, start: Arm64Start) -> bool:  # noqa: ARG002 - of psci.Power
        """Never called, as no vCPU is off."""
        return False

    def turn_off(self, *, reset: bool) -> None:  # noqa: ARG002 - of psci.Power
        """The guest has turned the machine off."""
        self._turned_off()


class UnicornArm64Vcpu(Bus, Adapter[Arm64Start]):
    """A vCPU: executes guest code on Unicorn, and its accesses, waits, timers and interrupts are irqchipd's vCPU's.

    memory  the guest's RAM, below 2^40
    vm      irqchipd's VM for arm64, with a vCPU of this id that is initialised
    vcpu    the id
    local   devices of this process, which get accesses before the daemon; called in the thread of run()
    power   the switches for PSCI's calls; by default this vCPU is the only one
    exits   counts the guest's accesses, waits and the like; None: no counting

    PSCI's CPU_OFF and SYSTEM_OFF end run().

    start() sets where the vCPU begins, and turns it on. The vCPU has a Session for its operations, and another for its
    events.
    Close it before the memory, or use it in a with statement.
    """

    def __init__(
        self,
        memory: GuestMemory,
        vm: Vm,
        vcpu: int,
        local: LocalDevices | None = None,
        power: psci.Power | None = None,
        exits: ExitStats | None = None,
    ) -> None:
        if memory.end > 1 << PHYSICAL_BITS:
            raise InvalidArgument(errno.EINVAL, f"RAM ends at {1 << PHYSICAL_BITS:#x} at most, not at {memory.end:#x}")
        self._power = power or Alone()
        with ExitStack() as made:
            self._engine = Engine(memory, self, vcpu)
            made.callback(self._engine.close)
            super().__init__(vm, vcpu, made, exits)
            self._events = made.enter_context(vm.session(f"vcpu {vcpu} events", vcpus=[vcpu]))
            self._accesses = self._make_accesses(partial(Accesses, self._vcpu), local)
            self._breaker = self._engine.breaker
            self._made = made.pop_all()

    @property
    def affinity(self) -> int:
        """The fields of MPIDR_EL1 by which the guest names this vCPU."""
        return affinity(self.id)

    def _begin(self) -> None:
        super()._begin()
        self._idle = self._idle or self._vcpu.mp_state() is MpState.STOPPED  # until start()

    def _execute(self) -> None:
        try:
            self._loop()
        except Unsupported as error:
            raise GuestError(f"vCPU {self.id} can't go on: {error}. It is at {self._engine.where()}") from None

    def _interrupt_guest(self) -> None:
        self._breaker.stop()

    def _start_at(self, start: Arm64Start) -> None:
        self._engine.start(start)

    def _loop(self) -> None:
        engine, breaker = self._engine, self._breaker
        while True:
            breaker.clear()  # Before looking at the reasons for a stop.
            self._raise_failure()
            if self._stop.is_set():
                return
            if breaker.slice_over:
                self._look()
                breaker.begin_slice()
            if self._idle:
                with self._counted(HALT):
                    self._wait(interrupts_masked=False)  # WFI ends by an interrupt that is masked, too.
                continue
            if self._interrupted:
                self._interrupt()
            match engine.run():
                case RegisterAccess() as access:
                    self._access(access)
                case GuestException(syndrome, address):
                    engine.enter(Vector.SYNCHRONOUS, syndrome, address)
                case Exit.WFI:
                    self._idle = True
                case Exit.HVC | Exit.SMC:
                    self._call()

    # Interrupts.

    def _interrupt(self) -> None:
        """Takes the IRQ or the FIQ, if the CPU interface signals one that the guest does not mask."""
        engine, breaker = self._engine, self._breaker
        masked = engine.masked
        if masked == IRQ | FIQ:
            breaker.narrow_window(IRQ | FIQ)
            breaker.stop_at_window()
            return
        signalled = self._read(ISR_EL1) & (IRQ | FIQ)
        if takable := signalled & ~masked:
            engine.enter(Vector.FIQ if takable & FIQ else Vector.IRQ)
            signalled = IRQ | FIQ  # No event announces a further interrupt, or the same one if the handler leaves it.
        self._interrupted = bool(signalled)
        if signalled:
            breaker.narrow_window(signalled)
            breaker.stop_at_window()
        else:
            breaker.ignore_window()

    def _accept(self, wake: Wake) -> None:  # noqa: ARG002 - the guest itself acknowledges
        self._idle = False
        self._interrupted = True

    def _look(self) -> None:
        """Takes the events that have come. SessionClosed."""
        if self._events.take_events():
            self._interrupted = True

    def _wrote(self) -> None:
        self._breaker.narrow_window(IRQ | FIQ)
        super()._wrote()

    # Instructions.

    def _access(self, access: RegisterAccess) -> None:
        """An access to a register of the GIC's CPU interface."""
        if access.write:
            answer = self._vcpu.sysreg_write(access.sysreg, access.value)
            self._interrupted = True
        else:
            answer = self._vcpu.sysreg_read(access.sysreg)
        if answer.fault or not answer.claimed:
            self._engine.undefined()
        else:
            self._engine.finish(access, answer.data)

    def _call(self) -> None:
        """HVC or SMC."""
        engine = self._engine
        result, then = psci.call([engine.register(number) for number in range(4)], self._power)
        engine.set_register(0, result & (1 << 64) - 1)
        match then:
            case psci.Next.SLEEP:
                self._idle = True
            case psci.Next.OFF:
                self._vcpu.set_mp_state(MpState.STOPPED)
                self._stop.set()
            case psci.Next.MACHINE_OFF:
                self._stop.set()

    def _read(self, register: int) -> int:
        """Reads a register that every vCPU has."""
        answer = self._vcpu.sysreg_read(register)
        if answer.fault or not answer.claimed:
            raise Unsupported(f"a read of {name(register)}, which the daemon does not answer")
        return answer.data

    # engine.Bus: called by the emulator.

    def sysreg_read(self, register: int) -> int:
        try:
            return self._read(register)
        except BaseException as error:
            return self._fail(error, 8)
        finally:
            self._breaker.spent()

    def sysreg_write(self, register: int, value: int) -> None:
        try:
            answer = self._vcpu.sysreg_write(register, value)
            if answer.fault or not answer.claimed:
                raise Unsupported(f"a write to {name(register)}, which the daemon does not take")
        except BaseException as error:
            self._fail(error, 8)
        self._wrote()

    def has_system_register_gic(self) -> bool:
        try:
            answer = self._vcpu.sysreg_read(ICC_SRE_EL1)
        except BaseException as error:
            self._fail(error, 8)
            return False
        return answer.claimed and not answer.fault

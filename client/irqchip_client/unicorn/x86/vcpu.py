"""A vCPU of Unicorn whose interrupt controllers are irqchipd's."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from irqchip_client._errors import GuestError, InvalidArgument
from irqchip_client.unicorn.bus import Bus
from irqchip_client.unicorn.emulator import Unsupported
from irqchip_client.vmm.accesses import ApicAccesses, LocalDevices
from irqchip_client.vmm.exit_stats import HALT, MSR_READ, MSR_WRITE, ExitStats
from irqchip_client.vmm.memory import PAGE, GuestMemory
from irqchip_client.vmm.start import Start, StartMode
from irqchip_client.vmm.x86 import X86Adapter, announced_by

from .apic import Apic
from .delivery import Event, Origin, deliver
from .engine import RAX, RCX, RDX, Engine, Trapped
from .exceptions import Fault, TripleFault, Vector
from .features import BOOT_CPU, IA32_TSC, PHYSICAL_BITS, X2APIC_ICR, Cpuid
from .system_calls import enter_by_syscall, enter_by_sysenter
from .traps import Trap

if TYPE_CHECKING:
    from irqchip_client import Vm

RAM_END = 0xFEC0_0000  # The IOAPIC
ICR = 0x300  # Its offset in the local APIC's page; and the bit that NMI, INIT and SIPI have in it
ICR_SIGNAL = 1 << 10
DWORD = 0xFFFF_FFFF


class UnicornVcpu(Bus, X86Adapter):
    """A vCPU: executes guest code on Unicorn, and its accesses, halts and interrupts are those of irqchipd's vCPU.

    memory  the guest's RAM, of less than 0xfec00000 bytes
    vm      irqchipd's VM, with an irqchip and a vCPU of this id
    vcpu    the id
    local   devices of this process, which get accesses before the daemon; called in the thread of run()
    exits   counts the guest's accesses, halts and the like; None: no counting

    vCPU 0 begins as after RESET, unless start() was called; the others wait for INIT and SIPI. It has a Session for
    its operations, and another for its events. Close it before the memory, or use it in a with statement.
    """

    def __init__(
        self, memory: GuestMemory, vm: Vm, vcpu: int, local: LocalDevices | None = None, exits: ExitStats | None = None
    ) -> None:
        if memory.start or memory.end > RAM_END:
            raise InvalidArgument(
                errno.EINVAL,
                f"a PC's RAM is from 0 to at most {RAM_END:#x}, below the IOAPIC, not from {memory.start:#x} to "
                f"{memory.end:#x}",
            )
        with ExitStack() as made:
            self._engine = Engine(memory, self)
            made.callback(self._engine.close)
            super().__init__(vm, vcpu, made, exits)
            self._events = made.enter_context(vm.session(f"vcpu {vcpu} events", vcpus=[vcpu]))
            self._vcpu.set_cpuid(tsc_adjust=False, physical_address_bits=PHYSICAL_BITS)
            self._apic = Apic(self._vcpu, self._local_apic)
            self._accesses = self._make_accesses(partial(ApicAccesses, self._vcpu, self._local_apic), local)
            self._breaker = self._engine.breaker
            self._engine.reset()
            self._made = made.pop_all()
        self._nmi = False  # Taken, while an earlier NMI blocks it.

    def _execute(self) -> None:
        try:
            self._loop()
        except (TripleFault, Unsupported) as error:
            raise GuestError(f"vCPU {self.id} can't go on: {error}. It is at {self._engine.where()}") from None

    def _interrupt_guest(self) -> None:
        self._breaker.stop()

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
            self._deliver_vector()
            if self._signalled:
                self._take_signals()
            if self._nmi:
                if engine.state.nmi_blocked:
                    breaker.stop_after_a_block()  # Any block may end with the IRET that the NMI waits for.
                else:
                    self._deliver_nmi()
            if self._idle:
                with self._counted(HALT):
                    self._wait(not engine.interrupts_enabled)
                continue
            if self._interrupted:
                self._interrupt()
            match engine.run():
                case Trapped() as trapped:
                    if self._recorder is None or trapped.trap is Trap.HLT:
                        self._emulate(trapped)
                    else:
                        with self._recorder.exit(*self._kind(trapped)):
                            self._emulate(trapped)
                case Event() as event:
                    deliver(engine, event)

    # Interrupts.

    def _interrupt(self) -> None:
        """If the daemon has an interrupt: delivers it once the guest can take it."""
        engine, breaker = self._engine, self._breaker
        while engine.interrupts_enabled:
            if engine.state.is_shadowed:
                breaker.stop_at_window(after_one=True)
                return
            self._interrupted = False
            interrupt = self._vcpu.acknowledge()
            if interrupt is None:
                breaker.ignore_window()
                return
            self._vector = interrupt.vector
            self._deliver_vector()
        breaker.stop_at_window()

    def _deliver_vector(self) -> None:
        """Delivers the interrupt that was acknowledged, if there is one."""
        if self._vector is not None:
            deliver(self._engine, Event(self._vector, Origin.EXTERNAL))
            self._vector = None
            self._interrupted = True  # Events are taken once a slice: ask for a further one at the next window.

    def _take_nmi(self) -> None:
        self._nmi = True

    def _take_smi(self) -> None:
        raise Unsupported("an SMI: Unicorn has no system management mode")

    def _start_at(self, start: Start) -> None:
        if start.mode is StartMode.REAL and start.entry >= 1 << 20:
            raise InvalidArgument(errno.EINVAL, f"real mode begins below 1 MiB, not at {start.entry:#x}")
        self._engine.start(start)

    def _reset(self) -> None:
        self._engine.reset()

    def _start_up(self, page: int) -> None:
        self._engine.start_in_real_mode(page << 8, 0)

    def _is_boot_cpu(self) -> bool:
        return bool(self._apic.base & BOOT_CPU)

    def _deliver_nmi(self) -> None:
        self._take_signals()  # A processor keeps one NMI, however many have come: 6.7.1.
        if not self._nmi:  # INIT came too.
            return
        self._nmi = False
        deliver(self._engine, Event(Vector.NMI, Origin.EXTERNAL))
        self._engine.block_nmi()

    def _forget(self) -> None:
        super()._forget()
        self._nmi = False

    def _look(self) -> None:
        """Takes the events that have come. SessionClosed."""
        interrupt, signal = announced_by(self._events.take_events())
        self._interrupted |= interrupt
        self._signalled |= signal

    # Instructions.

    def _emulate(self, trapped: Trapped) -> None:
        """Executes an instruction that the emulator does not execute."""
        engine = self._engine
        try:
            match trapped.trap:
                case Trap.HLT:
                    self._idle = True
                case Trap.RDMSR:
                    self._set_edx_eax(self._apic.read_msr(engine.register(RCX) & DWORD))
                case Trap.WRMSR:
                    value = (engine.register(RDX) & DWORD) << 32 | engine.register(RAX) & DWORD
                    self._apic.write_msr(engine.register(RCX) & DWORD, value)
                    self._interrupted = True
                    self._signalled |= engine.register(RCX) & DWORD == X2APIC_ICR
                case Trap.RDTSC:
                    self._set_edx_eax(self._apic.read_msr(IA32_TSC))
                case Trap.READ_CR8:
                    engine.set_register(trapped.register, self._apic.read_cr8())
                case Trap.SYSCALL:
                    enter_by_syscall(engine, trapped.length, is_64bit=engine.state.is_64bit)
                    return
                case Trap.SYSENTER:
                    enter_by_sysenter(engine)
                    return
                case Trap.WRITE_CR8:
                    self._apic.write_cr8(engine.register(trapped.register))
                    self._interrupted = True
        except Fault as fault:
            deliver(engine, Event(fault.vector, Origin.EXCEPTION, fault.error_code))
        else:
            engine.skip(trapped.length)

    def _kind(self, trapped: Trapped) -> tuple[str, int | None]:
        """For the counts of exits."""
        match trapped.trap:
            case Trap.RDMSR:
                return MSR_READ, self._engine.register(RCX) & DWORD
            case Trap.WRMSR:
                return MSR_WRITE, self._engine.register(RCX) & DWORD
            case trap:
                return trap.name.lower().replace("_", " "), None

    def _set_edx_eax(self, value: int) -> None:
        self._engine.set_register(RAX, value & DWORD)
        self._engine.set_register(RDX, value >> 32)

    # engine.Bus: called by the emulator.

    def pio_read(self, port: int, size: int) -> int:
        try:
            return self._accesses.pio_read(port, size)
        except BaseException as error:
            return self._fail(error, size)
        finally:
            self._breaker.spent()

    def pio_write(self, port: int, value: int, size: int) -> None:
        try:
            self._accesses.pio_write(port, value, size)
        except BaseException as error:
            self._fail(error, size)
        self._wrote()

    def mmio_write(self, address: int, value: int, size: int) -> None:
        super().mmio_write(address, value, size)
        if address % PAGE == ICR and value & ICR_SIGNAL:
            self._signalled = True
            self._breaker.stop()

    def cpuid_1(self, leaf: Cpuid) -> Cpuid:
        try:
            return leaf.with_apic(self.id, self._apic.base)
        except BaseException as error:
            self._fail(error, 0)
            return leaf

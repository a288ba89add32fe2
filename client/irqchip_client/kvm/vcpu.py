"""A vCPU of KVM whose interrupt controllers are irqchipd's."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from fcntl import ioctl as run_ioctl
from typing import TYPE_CHECKING

from irqchip_client._errors import GuestError, IrqchipError, TimedOut
from irqchip_client.vmm.accesses import ApicAccesses, LocalDevices
from irqchip_client.vmm.exit_stats import CountedDevices, ExitStats
from irqchip_client.vmm.start import Start
from irqchip_client.vmm.x86 import X86Adapter, announced_by

from .apic import Apic
from .counted_run import CountedRun
from .cpuid import Package, physical_address_bits, vcpu_cpuid
from .emulator import IF, Instruction, execute, next_instruction, nmi_must_wait, state_of
from .entry import Entry
from .exits import Exits
from .failures import describe, lacks_instruction
from .frames import Frame, next_frame
from .ioctls import DWORD, ENABLE_CAP, NO_EVENTS, Cap, Exit, Request, Run, delivers, ioctl
from .kick import Kick
from .registers import RIP, Registers
from .stepping import Stepping, windows_are_exact
from .tsc import Deadline, guest_tsc_khz
from .vm import KvmVm

if TYPE_CHECKING:
    from irqchip_client import Session, Vm

HEARTBEAT = 0.02  # seconds; for a KVM that does not exit when CR8 is lowered


class KvmVcpu(X86Adapter):
    """A vCPU: executes guest code on KVM, and its accesses, halts and interrupts are those of irqchipd's vCPU.

    kvm    the VM; a vCPU of KVM is made in it
    vm     irqchipd's VM, with an irqchip and a vCPU of this id
    vcpu   the id, which is also its APIC id
    local  devices of this process, which get accesses before the daemon; called in the thread of run()
    exits  counts the guest's exits; None: nothing does

    vCPU 0 begins as after RESET, unless start() was called; the others wait for INIT and SIPI. It has a Session for
    its operations, another for its events, on which a thread waits, and a third for events that it causes itself.
    Close it, or use it in a with statement.
    """

    def __init__(
        self, kvm: KvmVm, vm: Vm, vcpu: int, local: LocalDevices | None = None, exits: ExitStats | None = None
    ) -> None:
        with ExitStack() as made:
            self._fd = ioctl(kvm.fd, Request.CREATE_VCPU, vcpu)
            made.callback(os.close, self._fd)
            self._run = made.enter_context(mmap.mmap(self._fd, kvm.run_size))
            info = vm.info()
            # A deadline counts by the guest's TSC.
            khz = info.tsc_khz if not info.virtual and info.tsc_khz == guest_tsc_khz() else 0
            package = Package([*info.vcpus] if vcpu in info.vcpus else [*info.vcpus, vcpu], khz)
            ioctl(self._fd, Request.SET_CPUID2, vcpu_cpuid(kvm.cpuid, vcpu, package))
            # KVM does nothing that CPUID does not show.
            ioctl(self._fd, Request.ENABLE_CAP, ENABLE_CAP.pack(Cap.ENFORCE_PV_FEATURE_CPUID, 0, 1, 0, 0, 0))
            super().__init__(vm, vcpu, made, exits)
            recorder = self._recorder
            if local is not None and recorder is not None:
                local = CountedDevices(local, recorder)
            self._causes: Session | None = None
            if self._session.transport != "grpc":
                # Opened before the other Session with events, so that it gets them first. Over gRPC, an event may come
                # after the answer to the call that caused it.
                self._causes = made.enter_context(vm.session(f"vcpu {vcpu} causes", vcpus=[vcpu]))
            self._events = made.enter_context(vm.session(f"vcpu {vcpu} events", vcpus=[vcpu]))
            self._memory = kvm.memory
            self._registers = Registers(self._fd)
            self._kick = Kick(self._fd)
            self._vcpu.set_cpuid(
                tsc_deadline=khz > 0, tsc_adjust=False, physical_address_bits=physical_address_bits(kvm.cpuid)
            )
            deadline = Deadline(self._fd, self._session, vcpu, khz)
            self._apic = Apic(self._fd, self._run, self._vcpu, self._local_apic, deadline)
            accesses = ApicAccesses(self._vcpu, self._local_apic, local)
            self._exits = Exits(self._run, self._session, vcpu, accesses, local, self._apic)
            self._stepping = None if windows_are_exact() else Stepping(self._fd)
            self._entry = Entry(self._fd, self._run, self._local_apic, exact=self._stepping is None)
            made.callback(self._entry.close)
            self._enter = self._entry.enter if recorder is None else CountedRun(self._fd, self._run, recorder)
            self._made = made.pop_all()
        # Other threads set _interrupted and _signalled, and then kick the vCPU's thread, which clears them before it
        # asks the daemon.
        self._announced = False  # An event has announced an interrupt.
        self._held = False  # CR8 holds an interrupt back, and KVM does not exit when the guest lowers CR8.
        self._nmi_return = 0  # The return address of an NMI's handler.
        self._frame: Frame | None = None  # The frame that an exception in the next step would push.
        self._failure: IrqchipError | None = None
        self._handlers: dict[int, Callable[[], None]] = {
            Exit.IO: self._exits.io,
            Exit.MMIO: self._exits.mmio,
            Exit.DEBUG: self._debug,
            Exit.HLT: self._hlt,
            Exit.INTERNAL_ERROR: self._internal_error,
            Exit.X86_RDMSR: self._exits.rdmsr,
            Exit.X86_WRMSR: self._exits.wrmsr,
            # The loop reads the states that these exits report.
            Exit.IRQ_WINDOW_OPEN: _nothing,
            Exit.INTR: _nothing,
            Exit.SET_TPR: _nothing,
        }
        # A daemon thread: a program that forgets close() still exits.
        self._listener = threading.Thread(target=self._listen, name=f"irqchip vcpu {vcpu} events", daemon=True)
        self._listener.start()

    def _execute(self) -> None:
        self._kick.enter()
        try:
            self._apic.learn()
            if self._failure is not None:
                raise self._failure
            if not self._stop.is_set():
                self._loop()
        finally:
            self._kick.leave()
            if self._recorder is not None:
                self._recorder.end()

    def _interrupt_guest(self) -> None:
        self._kick.kick()

    def _close(self) -> None:
        self._events.close()
        self._listener.join()
        super()._close()

    def _loop(self) -> None:
        run, enter, kick, apic, exits, handlers = (
            *(self._run, self._enter, self._kick),
            *(self._apic, self._exits, self._handlers),
        )
        while True:
            # take() first: a thread that sets a flag after it kicks again.
            if kick.pending:
                kick.take()
                if self._stop.is_set():
                    self._complete()
                    return
                if self._failure is not None:
                    raise self._failure
                if self._causes is not None:
                    self._look()
            if self._signalled:
                self._take_signals()
            if self._idle:
                self._wait(not run[Run.IF_FLAG])
                continue
            if (self._interrupted or self._vector is not None or self._held) and self._interrupt():
                continue
            try:
                enter()
                reason = run[Run.EXIT_REASON]
            except InterruptedError:  # A kick, or a signal for this process.
                reason = Exit.INTR
            except OSError as error:
                raise self._guest_error(f"KVM_RUN fails: {error.strerror}") from None
            if self._frame is not None:
                frame, self._frame = self._frame, None
                frame.clear_tf(state_of(self._fd, self._memory))
            # KVM_EXIT_SET_TPR comes only for a lower CR8.
            if run[Run.CR8] != apic.cr8:
                apic.report_cr8()
                exits.wrote = True
            handlers.get(reason, self._cannot_go_on)()
            if exits.wrote:
                self._look()

    def _look(self) -> None:
        """Takes the events that have come.

        After a store, which may interrupt the guest itself, the interrupt must come before the next instruction, as
        with the processor's own APIC. The thread that waits for events would be too late.
        """
        exits, stepping = self._exits, self._stepping
        if self._causes is None:
            interrupted, signalled = True, exits.signalled
        else:
            interrupted, signalled = announced_by(self._causes.take_events())
        exits.wrote = exits.signalled = False
        if interrupted:
            self._interrupted = self._announced = True
        if signalled:
            self._signalled = True
        if stepping is not None:
            self._held = bool(self._apic.cr8) and self._apic.has_requests()
            if not self._held and not self._announced:
                stepping.run_on()

    def _interrupt(self) -> bool:
        """If the daemon has an interrupt: acknowledges it once the guest can take it, and makes KVM deliver it.

        Returns whether this has executed the guest's next instruction itself.
        """
        run, stepping = self._run, self._stepping
        waits = self._interrupted or self._vector is not None
        if waits and not run[Run.READY_FOR_INTERRUPT_INJECTION]:
            run[Run.REQUEST_INTERRUPT_WINDOW] = 1
            known = self._announced or self._held or self._vector is not None
            return stepping is not None and known and self._step(stepping)
        if stepping is not None:
            if not waits:
                return self._step(stepping)
            stepping.run_on()
        if self._vector is None:
            self._interrupted = self._announced = False
            interrupt = self._vcpu.acknowledge()
            if interrupt is None:
                run[Run.REQUEST_INTERRUPT_WINDOW] = 0
                return stepping is not None and self._held and self._step(stepping)
            self._hold(interrupt)
        assert self._vector is not None
        ioctl(self._fd, Request.INTERRUPT, DWORD.pack(self._vector))
        self._vector = None
        run[Run.READY_FOR_INTERRUPT_INJECTION] = 0  # KVM holds an interrupt.
        run[Run.REQUEST_INTERRUPT_WINDOW] = self._interrupted
        return False

    def _find_nmi_window(self, stepping: Stepping) -> None:
        """Before an NMI: behind another NMI it waits for that one's IRET, and KVM would notice the IRET late."""
        if nmi_must_wait(self._fd):
            stepping.break_at(self._nmi_return)
        else:
            self._complete()
            state = state_of(self._fd, self._memory)
            self._nmi_return = state.base("cs") + state.regs[RIP]

    def _debug(self) -> None:
        if self._stepping is not None and self._run[Run.DEBUG_DR6] & 1:
            self._stepping.break_at(None)

    def _step(self, stepping: Stepping) -> bool:
        """Makes KVM_RUN execute one instruction. Returns whether this has executed it, as KVM would not stop."""
        if not stepping.step():
            return False
        state = state_of(self._fd, self._memory)
        self._frame = next_frame(state)
        if delivers(self._fd):  # Then the next instruction is the handler's first.
            return False
        match next_instruction(state):
            case Instruction.HLT:  # Its exit would come after another instruction.
                self._frame = None
                stepping.run_on()
            case Instruction.IRET:
                self._complete()
                if (flags := execute(self._fd, self._memory)) is not None:
                    self._frame = None
                    self._flags_changed(flags)
                    return True
        return False

    def _hlt(self) -> None:
        self._idle = True

    def _take_nmi(self) -> None:
        if self._stepping is not None:
            self._find_nmi_window(self._stepping)
        ioctl(self._fd, Request.NMI)

    def _take_smi(self) -> None:
        ioctl(self._fd, Request.SMI)

    def _start_at(self, start: Start) -> None:
        self._complete()
        self._registers.start(start)

    def _reset(self) -> None:
        self._complete()
        self._registers.reset()

    def _start_up(self, page: int) -> None:
        self._registers.start_up(page)

    def _is_boot_cpu(self) -> bool:
        return self._apic.is_boot_cpu

    def _complete(self) -> None:
        """Makes KVM complete the instruction of the last exit, and nothing else."""
        run = self._run
        run[Run.IMMEDIATE_EXIT] = 1
        try:
            while True:
                run_ioctl(self._fd, Request.RUN)
                self._handlers.get(run[Run.EXIT_REASON], _nothing)()  # Another part of the same access.
        except InterruptedError:
            pass
        finally:
            run[Run.IMMEDIATE_EXIT] = 0

    def _forget(self) -> None:
        super()._forget()
        ioctl(self._fd, Request.SET_VCPU_EVENTS, NO_EVENTS)
        self._run[Run.READY_FOR_INTERRUPT_INJECTION] = 0
        self._run[Run.REQUEST_INTERRUPT_WINDOW] = self._interrupted
        self._apic.learn()

    def _listen(self) -> None:
        """Waits for events, and kicks the vCPU's thread if it is in the guest: the daemon ends a halt itself."""
        try:
            while True:
                try:
                    event = self._events.next_event(None if self._stepping is None else HEARTBEAT)
                except TimedOut:
                    if self._apic.cr8:
                        self._kick.kick()
                    continue
                if self._causes is None:  # otherwise the vCPU's thread takes the events of _causes
                    interrupt, signal = announced_by([event])
                    if interrupt:
                        self._interrupted = self._announced = True
                    if signal:
                        self._signalled = True
                self._kick.kick()
        except IrqchipError as error:
            if not self._closed:
                self._failure = error
                self._kick.kick()

    def _internal_error(self) -> None:
        flags = execute(self._fd, self._memory) if lacks_instruction(self._run) else None
        if flags is None:
            self._cannot_go_on()
        else:
            self._flags_changed(flags)

    def _flags_changed(self, flags: int) -> None:
        ready = bool(flags & IF)
        self._run[Run.IF_FLAG] = self._run[Run.READY_FOR_INTERRUPT_INJECTION] = ready

    def _cannot_go_on(self) -> None:
        reason = self._run[Run.EXIT_REASON]
        what = describe(reason, self._run)
        if reason == Exit.SHUTDOWN and self._registers.as_reset:  # KVM: svm.c shutdown_interception
            what += "; this processor lost the place, and KVM has reset the vCPU"
        raise self._guest_error(what)

    def _guest_error(self, what: str) -> GuestError:
        return GuestError(f"vCPU {self.id} can't go on: {what}. It is at {self._registers.where()}")


def _nothing() -> None:
    pass

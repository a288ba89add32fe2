"""The base of the x86 vCPUs of KVM and of Unicorn: the local APIC, INIT, SIPI, NMI and SMI."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from irqchip_client._events import Event, InterruptPending, VcpuSignal
from irqchip_client._model import Interrupt, InterruptSource, MpState, Signal, SignalKind, Wake

from .adapter import Adapter
from .exit_stats import CountedLocalApic, ExitStats
from .local_apic import LocalApic, share_local_apic
from .start import Start

if TYPE_CHECKING:
    from irqchip_client import Vm

_WAITS_FOR_STARTUP = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


class X86Adapter(Adapter[Start]):
    """An x86 vCPU that executes a guest."""

    def __init__(self, vm: Vm, vcpu: int, made: ExitStack, exits: ExitStats | None = None) -> None:
        super().__init__(vm, vcpu, made, exits)
        recorder = self._recorder
        make = LocalApic if recorder is None else partial(CountedLocalApic, recorder=recorder)
        self._local_apic = share_local_apic(self._session, vcpu, make)
        made.callback(self._local_apic.close)
        # The daemon may have a signal to take.
        self._signalled = False
        # An interrupt that is acknowledged, and not yet delivered to the guest.
        self._vector: int | None = None

    # Each adapter implements these.

    def _reset(self) -> None:
        """INIT: the registers are as after RESET."""
        raise NotImplementedError

    def _start_up(self, page: int) -> None:
        """SIPI: the vCPU begins in real mode, at the first byte of a page."""
        raise NotImplementedError

    def _is_boot_cpu(self) -> bool:
        """Whether IA32_APIC_BASE marks the boot CPU."""
        raise NotImplementedError

    def _look(self) -> None:
        """Takes the events that have come, without waiting."""
        raise NotImplementedError

    def _take_nmi(self) -> None:
        raise NotImplementedError

    def _take_smi(self) -> None:
        raise NotImplementedError

    # All adapters share these.

    def _begin(self) -> None:
        self._idle = self._idle or self._vcpu.mp_state() in _WAITS_FOR_STARTUP
        super()._begin()
        self._signalled = True

    def _take_signals(self) -> None:
        self._signalled = False
        while (signal := self._vcpu.take_signal()) is not None:
            self._accept(signal)

    def _accept(self, wake: Wake) -> None:
        self._idle = False
        match wake:
            case Interrupt():
                self._hold(wake)
            case Signal(SignalKind.NMI):
                self._take_nmi()
            case Signal(SignalKind.SMI):
                self._take_smi()
            case Signal(SignalKind.INIT):
                self._reset()
                self._forget()
                self._idle = not self._is_boot_cpu()  # The others wait for SIPI.
            case Signal(SignalKind.SIPI, page):
                self._start_up(page)
                self._forget()
            case Signal(SignalKind.UNHALT):
                pass  # The vCPU goes on behind its HLT.

    def _hold(self, interrupt: Interrupt) -> None:
        """Keeps an interrupt that was acknowledged, until it is delivered."""
        self._vector = interrupt.vector
        if interrupt.source is not InterruptSource.LAPIC:  # The local APIC may have another, which comes right behind.
            self._look()

    def _forget(self) -> None:
        super()._forget()
        self._vector = None


def announced_by(events: Iterable[Event]) -> tuple[bool, bool]:
    """Whether events announce an interrupt, and whether a signal; a dropped event may have been either."""
    interrupt = signal = False
    for event in events:
        interrupt |= not isinstance(event, VcpuSignal)
        signal |= not isinstance(event, InterruptPending)
    return interrupt, signal

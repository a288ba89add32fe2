"""eventfds that interrupt, irqfds, and those that doorbells ring. KVM: virt/kvm/eventfd.c."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.signalling import signaller
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Event
from irqchipd.vm.lines import Irqfd
from irqchipd.vm.machine import Vm
from irqchipd.vm.sources import LineSource

DEASSIGN, RESAMPLE = 1, 2  # KVM_IRQFD_FLAG_*
_FDINFO = re.compile(r"^eventfd-count:\s*([0-9a-f]+)$.*^eventfd-id:\s*(\d+)$", re.MULTILINE | re.DOTALL)


def _eventfd(descriptor: int) -> tuple[int, int]:
    """An eventfd's identity, which its duplicates share, and its counter; EINVAL for another descriptor."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        found = _FDINFO.search(file.read())
    if found is None:
        raise invalid("the descriptor that came with the message is no eventfd")
    return int(found[2]), int(found[1], 16)


class EventfdsInUse:
    """Which eventfds the daemon holds, of all VMs and Sessions; from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._identities: set[object] = set()

    def add(self, identity: object) -> None:
        """One more: EBUSY where it is an irqfd already, ENOSPC at the limit."""
        with self._lock:
            if identity in self._identities:
                raise VmError(errno.EBUSY, "the eventfd is an irqfd already")
            if len(self._identities) >= self._most:
                raise VmError(errno.ENOSPC, f"there are {self._most} eventfds, the most that this daemon allows")
            self._identities.add(identity)

    def remove(self, identity: object) -> None:
        """One less."""
        with self._lock:
            self._identities.discard(identity)


class _Signalled:
    """An eventfd that is written, from any thread. It owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()  # a write may come while it is closed

    def signal(self) -> None:
        """Add 1, and wait for nothing."""
        with self._lock:
            if self._descriptor is not None:
                signaller().signal(self._descriptor)

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class Bell:
    """An eventfd that a doorbell rings. KVM: eventfd.c ioeventfd_write."""

    def __init__(self, in_use: EventfdsInUse, descriptor: int) -> None:
        in_use.add(self)
        self._in_use = in_use
        self._eventfd = _Signalled(descriptor)

    def ring(self, _: Event) -> None:
        """There was a write."""
        self._eventfd.signal()

    def close(self) -> None:
        """The doorbell is no more."""
        self._eventfd.close()
        self._in_use.remove(self)


class _Assigned:
    """An eventfd that interrupts. It owns its descriptors."""

    def __init__(self, vm: Vm, gsi: int, eventfd: int, resamplefd: int | None) -> None:
        self.vm = vm
        self.gsi = gsi
        self.eventfd = eventfd
        self._resamplefd = None if resamplefd is None else _Signalled(resamplefd)
        self.irqfd: Irqfd | None = None
        # Its counter when it was assigned, which KVM leaves, until there is a write.
        self.untouched = 0

    def resampled(self, _: Event) -> None:
        """Its interrupt was acknowledged; from any thread."""
        if self._resamplefd is not None:
            self._resamplefd.signal()

    def close(self) -> None:
        """Let go of the descriptors."""
        os.close(self.eventfd)
        if self._resamplefd is not None:
            self._resamplefd.close()

    def written(self, _: int) -> None:
        """There was a write, or it was just assigned."""
        if self.untouched:
            untouched, self.untouched = self.untouched, 0
            if _eventfd(self.eventfd)[1] == untouched:
                return
        with suppress(OSError):  # its client may have read it
            os.preadv(self.eventfd, (bytearray(8),), -1, os.RWF_NOWAIT)
        if self.irqfd is not None:
            self.vm.trigger(self.irqfd)


class SessionEventfds:
    """One Session's. Its descriptors are watched by watch, and no more after unwatch."""

    def __init__(
        self, in_use: EventfdsInUse, watch: Callable[[int, Callable[[int], None]], None], unwatch: Callable[[int], None]
    ) -> None:
        self._in_use = in_use
        self._watch = watch
        self._unwatch = unwatch
        self._assigned: dict[int, _Assigned] = {}
        # What came with the message that is executed.
        self.descriptors: list[int] = []

    def execute(self, vm: Vm, source: LineSource, request: pb.IrqfdRequest) -> None:
        """KVM_IRQFD. KVM: eventfd.c kvm_irqfd, whose order of checks this is."""
        if request.flags & ~(DEASSIGN | RESAMPLE):
            raise invalid(f"flags {request.flags:#x} of an irqfd; {DEASSIGN} deassigns, {RESAMPLE} resamples")
        if request.flags & DEASSIGN:
            eventfd = self._take()
            try:
                self._deassign(_eventfd(eventfd)[0], request.gsi)
            finally:
                os.close(eventfd)
            return
        taken: list[int] = []
        try:
            irqfd = self._assign(vm, source, request, taken)
        except BaseException:
            for descriptor in taken:
                os.close(descriptor)
            raise
        if irqfd.untouched and irqfd.irqfd is not None:
            vm.trigger(irqfd.irqfd)

    def bell(self) -> Bell:
        """The next descriptor, for a doorbell. EBADF where there is none, EINVAL where it is no eventfd, ENOSPC."""
        descriptor = self._take()
        try:
            _eventfd(descriptor)
            return Bell(self._in_use, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _take(self) -> int:
        if not self.descriptors:
            raise VmError(errno.EBADF, "no descriptor came with the message for this operation")
        return self.descriptors.pop(0)

    def _assign(self, vm: Vm, source: LineSource, request: pb.IrqfdRequest, taken: list[int]) -> _Assigned:
        resamples = bool(request.flags & RESAMPLE)
        vm.check_irqfd(resamples)
        taken.append(self._take())
        identity, count = _eventfd(taken[0])
        if resamples:
            taken.append(self._take())
            _eventfd(taken[1])
        self._in_use.add(identity)
        assigned = _Assigned(vm, request.gsi, taken[0], taken[1] if resamples else None)
        try:
            assigned.irqfd = vm.add_irqfd(source, request.gsi, assigned.resampled if resamples else None)
            assigned.untouched = count
            self._watch(assigned.eventfd, assigned.written)
        except BaseException:
            if assigned.irqfd is not None:
                vm.remove_irqfd(assigned.irqfd)
            self._in_use.remove(identity)
            raise
        self._assigned[identity] = assigned
        return assigned

    def _deassign(self, identity: int, gsi: int) -> None:
        assigned = self._assigned.get(identity)
        if assigned is not None and assigned.gsi == gsi:
            self._remove(identity)

    def _remove(self, identity: int) -> None:
        assigned = self._assigned.pop(identity)
        self._unwatch(assigned.eventfd)
        if assigned.irqfd is not None:
            assigned.vm.remove_irqfd(assigned.irqfd)
        self._in_use.remove(identity)
        assigned.close()

    def discard(self) -> None:
        """The message is done; what nobody took of what came with it goes."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def close(self) -> None:
        """The Session is over, and none of its eventfds interrupts any more."""
        self.discard()
        for identity in list(self._assigned):
            self._remove(identity)

"""irqfds, and the eventfds of doorbells. KVM: virt/kvm/eventfd.c."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from irqchipd.edge.closing import CLOSER
from irqchipd.edge.eventfd_write import writer
from irqchipd.edge.guest_memory import SharedMemory, check_memfd, keeps_its_size, send_memfd
from irqchipd.edge.lapic_page import LapicPage
from irqchipd.edge.work import Watcher, Work
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Event
from irqchipd.vm.lines import Irqfd
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Pending
from irqchipd.vm.regions import SharedBytes
from irqchipd.vm.sources import LineSource
from irqchipd.vm.x86.machine import X86Vm

DEASSIGN, RESAMPLE = 1, 2  # KVM_IRQFD_FLAG_*
MAPPED = 1 << 44  # bytes of clients' memory, an eighth of a process's address space on x86-64
PASSING = 64  # the most descriptors held besides those of irqfds and doorbells, for example to deassign an irqfd
_FDINFO = re.compile(r"^eventfd-count:\s*([0-9a-f]+)$.*^eventfd-id:\s*(\d+)$", re.MULTILINE | re.DOTALL)


def _eventfd(descriptor: int) -> tuple[int, int]:
    """An eventfd's identity, which its duplicates share, and its counter; EINVAL for any other descriptor."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        found = _FDINFO.search(file.read())
    if found is None:
        raise invalid("the descriptor is not an eventfd")
    return int(found[2]), int(found[1], 16)


def _nothing() -> None:
    pass


class EventfdsInUse:
    """Counts the clients' descriptors that the daemon holds, for all VMs and Sessions; from any thread.

    The number of irqfds and doorbell eventfds is limited; each has one or two descriptors. Any descriptor
    counts from its arrival until it is closed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held = 0
        self._mapped = 0
        self._identities: set[object] = set()

    def hold(self, count: int) -> int:
        """Count descriptors that have arrived. Returns how many of them may be kept."""
        with self._lock:
            kept = min(count, 2 * self._most + PASSING - self._held)
            self._held += kept
        return kept

    def let_go(self) -> None:
        """Count a descriptor that was kept and has been closed."""
        with self._lock:
            self._held -= 1

    def map(self, length: int) -> None:
        """Count bytes of memory that the daemon maps. ENOSPC at the limit."""
        with self._lock:
            if self._mapped + length > MAPPED:
                raise VmError(errno.ENOSPC, f"the daemon maps at most {MAPPED:#x} bytes of memory, for all VMs")
            self._mapped += length

    def unmap(self, length: int) -> None:
        """Undo map."""
        with self._lock:
            self._mapped -= length

    def add(self, identity: object) -> None:
        """Count an eventfd. EBUSY if it is an irqfd already, ENOSPC at the limit."""
        with self._lock:
            if identity in self._identities:
                raise VmError(errno.EBUSY, "the eventfd is an irqfd already")
            if len(self._identities) >= self._most:
                raise self.full()
            self._identities.add(identity)

    def remove(self, identity: object) -> None:
        """Undo add."""
        with self._lock:
            self._identities.discard(identity)

    def full(self) -> VmError:
        """The error at the limit."""
        return VmError(errno.ENOSPC, f"there are {self._most} eventfds, the most that this daemon allows")


class _Held:
    """A descriptor that any thread may use until it is closed. Owns the descriptor."""

    def __init__(self, descriptor: int, closed: Callable[[], None] = _nothing) -> None:
        self._descriptor: int | None = descriptor
        self._closed = closed
        self._lock = threading.Lock()  # another thread may use the descriptor while this one closes

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)
                self._closed()


class _Signalled(_Held):
    """An eventfd that any thread may write."""

    def signal(self) -> None:
        """Add 1, without waiting."""
        with self._lock:
            if self._descriptor is not None:
                writer().add_one(self._descriptor)


class Bell:
    """An eventfd that a doorbell rings. KVM: eventfd.c ioeventfd_write."""

    def __init__(self, in_use: EventfdsInUse, descriptor: int) -> None:
        in_use.add(self)
        self._in_use = in_use
        self._eventfd = _Signalled(descriptor, in_use.let_go)

    def ring(self, _: Event) -> None:
        """The guest wrote to the doorbell."""
        self._eventfd.signal()

    def close(self) -> None:
        """The doorbell was removed."""
        self._eventfd.close()
        self._in_use.remove(self)


class Lent(_Held):
    """A part of the guest's memory that a client shares. Owns the descriptor.

    is_mapped  the daemon sets bits in it; otherwise other processes map it, and it must keep its size
    """

    def __init__(self, in_use: EventfdsInUse, descriptor: int, offset: int, length: int, *, is_mapped: bool) -> None:
        """EINVAL, ENOSPC; the descriptor is then the caller's."""
        super().__init__(descriptor, in_use.let_go)
        self.offset = offset
        self._length = length
        self._in_use = in_use
        self._mapped: SharedMemory | None = None
        in_use.add(self)
        try:
            check_memfd(descriptor, offset, length)
            if is_mapped:
                in_use.map(length)
                try:
                    self._mapped = SharedMemory(descriptor, offset, length)
                except BaseException:
                    in_use.unmap(length)
                    raise
            elif not keeps_its_size(descriptor):
                raise invalid("the memfd can shrink: seal it with F_SEAL_SHRINK")
        except BaseException:
            in_use.remove(self)
            raise

    def set_bits(self, offset: int, mask: int) -> int | None:
        """Set the one bit of a mask in a byte, and return the old byte; None where the memfd has shrunk."""
        return None if self._mapped is None else self._mapped.set_bits(offset, mask)

    def send(self, over: int) -> None:
        """Send the memfd through a unix socket: EINVAL, ENOENT where the region has just gone."""
        with self._lock:
            if self._descriptor is None:
                raise VmError(errno.ENOENT, "the memory is no longer shared")
            if not keeps_its_size(self._descriptor):
                raise invalid("the memory's memfd can shrink: its owner must seal it with F_SEAL_SHRINK")
            send_memfd(self._descriptor, over)

    def close(self) -> None:
        """The region was removed."""
        if self._mapped is not None:
            self._mapped.close()
            self._in_use.unmap(self._length)
        super().close()
        self._in_use.remove(self)


class _Assigned(Work):
    """An irqfd. Owns the descriptors."""

    def __init__(self, in_use: EventfdsInUse, vm: Vm, gsi: int, eventfd: int, resamplefd: int | None) -> None:
        super().__init__()
        self.vm = vm
        self.gsi = gsi
        self.eventfd = eventfd
        self._in_use = in_use
        self._resamplefd = None if resamplefd is None else _Signalled(resamplefd, in_use.let_go)
        self.irqfd: Irqfd | None = None
        # The counter when the eventfd was assigned. KVM does not clear it until there is a write.
        self.untouched = 0

    @property
    def holder(self) -> object:
        return self.vm.share

    def resampled(self, _: Event) -> None:
        """Signal that the interrupt was acknowledged; from any thread."""
        if self._resamplefd is not None:
            self._resamplefd.signal()

    def go_on(self) -> Pending | None:
        # There was a write, or the eventfd was just assigned.
        if self.irqfd is None:  # it was deassigned meanwhile
            return None
        if self.vm.agenda.backlog is not None:
            return self.vm.agenda.backlog
        if self.untouched:
            untouched, self.untouched = self.untouched, 0
            if _eventfd(self.eventfd)[1] == untouched:
                return None
        with suppress(OSError):  # the client may have read the counter
            os.preadv(self.eventfd, (bytearray(8),), -1, os.RWF_NOWAIT)
        self.vm.trigger(self.irqfd)
        return None

    def close(self) -> None:
        """End the irqfd, and close the descriptors."""
        irqfd, self.irqfd = self.irqfd, None
        if irqfd is not None:
            self.vm.remove_irqfd(irqfd)
        os.close(self.eventfd)
        self._in_use.let_go()
        if self._resamplefd is not None:
            self._resamplefd.close()


class SharedLapic:
    """A local APIC whose registers are copied to a client's page. Owns the descriptor."""

    def __init__(self, in_use: EventfdsInUse, vm: X86Vm, vcpu: int, descriptor: int) -> None:
        """EINVAL, EBUSY, ENOENT, ENXIO, ENOSPC; the descriptor is then the caller's."""
        self._in_use, self._vm, self._vcpu, self._descriptor = in_use, vm, vcpu, descriptor
        in_use.add(self)
        try:
            self._page = LapicPage(descriptor)
            try:
                vm.share_lapic(vcpu, self._page)
            except BaseException:
                self._page.close()
                raise
        except BaseException:
            in_use.remove(self)
            raise

    def close(self) -> None:
        """The Session ends."""
        self._vm.unshare_lapic(self._vcpu, self._page)
        self._page.close()
        os.close(self._descriptor)
        self._in_use.let_go()
        self._in_use.remove(self)


class Eventfds:
    """The eventfds that come with a Session's batches. This base class is for a transport without descriptors."""

    def begin_message(self, is_records: bool) -> None:
        """A message begins. Close descriptors, unless they were announced for a batch of messages."""

    def announce(self) -> None:
        """The next message carries descriptors."""
        raise invalid("every message of a Session but the first must be a batch, or halt_given_up")

    def irqfd(self, vm: Vm, source: LineSource, flags: int, gsi: int) -> None:
        """KVM_IRQFD."""
        raise _no_descriptors()

    def bell(self) -> Bell:
        """The next eventfd, for a doorbell to ring."""
        raise _no_descriptors()

    def share_lapic(self, vm: X86Vm, vcpu: int) -> None:
        """Keep a copy of a local APIC's registers in the next descriptor, a memfd."""
        raise _no_descriptors()

    def guest_memory(self, offset: int, length: int, *, is_mapped: bool) -> Lent:
        """A part of the next descriptor, a memfd, as a part of the guest's memory."""
        raise _no_descriptors()

    def send_memory(self, memory: SharedBytes) -> None:
        """Send the guest's memory through the next descriptor, a unix socket."""
        raise _no_descriptors()


def _no_descriptors() -> VmError:
    return VmError(errno.EOPNOTSUPP, "gRPC carries no descriptors; open the Session on the AF_UNIX port")


class PortEventfds(Eventfds):
    """The eventfds of a Session on the port."""

    def __init__(self, in_use: EventfdsInUse, watcher: Watcher) -> None:
        self._in_use = in_use
        self._watcher = watcher
        self._assigned: dict[int, _Assigned] = {}
        self._shared: list[SharedLapic] = []
        # The descriptors that came with the current message; and whether more came than there was room for.
        self._descriptors: list[int] = []
        self._refused = False
        self.unused = False  # whether descriptors have come since the last discard
        self._announced = False

    def receive(self, descriptors: Sequence[int]) -> None:
        """Keep descriptors that came with a message, while there is room."""
        kept = self._in_use.hold(len(descriptors))
        self.unused = True
        self._descriptors.extend(descriptors[:kept])
        for descriptor in descriptors[kept:]:
            self._refused = True
            CLOSER.close(descriptor, _nothing)

    def begin_message(self, is_records: bool) -> None:
        announced, self._announced = self._announced, False
        if is_records or not announced:
            self.discard()

    def announce(self) -> None:
        if self._descriptors or self._refused:
            raise invalid("descriptors are sent with a batch, and this message is not a batch")
        self._announced = True

    def irqfd(self, vm: Vm, source: LineSource, flags: int, gsi: int) -> None:
        """KVM_IRQFD, with the order of checks of KVM: eventfd.c kvm_irqfd."""
        vm.check_alive()
        if flags & ~(DEASSIGN | RESAMPLE):
            raise invalid(f"flags {flags:#x} of an irqfd: use {DEASSIGN} to deassign, {RESAMPLE} to resample")
        if flags & DEASSIGN:
            eventfd = self._take()
            try:
                self._deassign(_eventfd(eventfd)[0], gsi)
            finally:
                self._close(eventfd)
            return
        taken: list[int] = []
        try:
            irqfd = self._assign(vm, source, bool(flags & RESAMPLE), gsi, taken)
        except BaseException:
            for descriptor in taken:
                self._close(descriptor)
            raise
        if irqfd.untouched and irqfd.irqfd is not None:
            vm.trigger(irqfd.irqfd, assigned=True)

    def bell(self) -> Bell:
        """The next descriptor, for a doorbell. EBADF without one, EINVAL if it is not an eventfd, ENOSPC."""
        descriptor = self._take()
        try:
            _eventfd(descriptor)
            return Bell(self._in_use, descriptor)
        except BaseException:
            self._close(descriptor)
            raise

    def share_lapic(self, vm: X86Vm, vcpu: int) -> None:
        descriptor = self._take()
        try:
            shared = SharedLapic(self._in_use, vm, vcpu, descriptor)
        except BaseException:
            self._close(descriptor)
            raise
        self._shared.append(shared)

    def guest_memory(self, offset: int, length: int, *, is_mapped: bool) -> Lent:
        descriptor = self._take()
        try:
            return Lent(self._in_use, descriptor, offset, length, is_mapped=is_mapped)
        except BaseException:
            self._close(descriptor)
            raise

    def send_memory(self, memory: SharedBytes) -> None:
        descriptor = self._take()
        try:
            memory.send(descriptor)
        finally:
            self._close(descriptor)

    def _take(self) -> int:
        if self._descriptors:
            return self._descriptors.pop(0)
        if self._refused:
            raise self._in_use.full()
        raise VmError(errno.EBADF, "no descriptor came with the message for this operation")

    def _close(self, descriptor: int) -> None:
        """Close a received descriptor of any kind."""
        CLOSER.close(descriptor, self._in_use.let_go)

    def _assign(self, vm: Vm, source: LineSource, resamples: bool, gsi: int, taken: list[int]) -> _Assigned:
        vm.check_irqfd(resamples)
        taken.append(self._take())
        identity, count = _eventfd(taken[0])
        if resamples:
            taken.append(self._take())
            _eventfd(taken[1])
        assigned = _Assigned(self._in_use, vm, gsi, taken[0], taken[1] if resamples else None)
        assigned.irqfd = vm.add_irqfd(source, gsi, assigned.resampled if resamples else None)
        try:
            # KVM checks only after the resampler whether the eventfd already is an irqfd; its removal lowers the line.
            self._in_use.add(identity)
            try:
                assigned.untouched = count
                self._watcher.watch_eventfd(assigned.eventfd, assigned)
            except BaseException:
                self._in_use.remove(identity)
                raise
        except BaseException:
            vm.remove_irqfd(assigned.irqfd)
            raise
        self._assigned[identity] = assigned
        return assigned

    def _deassign(self, identity: int, gsi: int) -> None:
        assigned = self._assigned.get(identity)
        if assigned is not None and assigned.gsi == gsi:
            self._remove(identity)

    def _remove(self, identity: int) -> None:
        assigned = self._assigned.pop(identity)
        self._watcher.unwatch(assigned.eventfd)
        self._in_use.remove(identity)
        assigned.close()

    def discard(self) -> None:
        """The message is done: close the descriptors that no operation took."""
        while self._descriptors:
            self._close(self._descriptors.pop())
        self._refused = self.unused = False

    def close(self) -> None:
        """The Session ends: close all of its descriptors."""
        self.discard()
        for identity in list(self._assigned):
            self._remove(identity)
        while self._shared:
            self._shared.pop().close()

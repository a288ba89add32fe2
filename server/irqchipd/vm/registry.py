"""The VMs of a daemon, by name."""

from __future__ import annotations

import errno
import logging
import re
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from typing import Final

from irqchipd.fields import fields
from irqchipd.vm.architectures import Limits, Properties
from irqchipd.vm.architectures import architecture as find_architecture
from irqchipd.vm.clock import Deadlines, RealClock, VirtualClock
from irqchipd.vm.errors import VmError, invalid, quoted
from irqchipd.vm.machine import MAX_VCPUS, Vm
from irqchipd.vm.regions import ACCESS_NS
from irqchipd.vm.snapshot import X86, VmState

log = logging.getLogger(__name__)

_USUAL: Final = Properties()
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(name: str) -> bool:
    """Whether a VM can have this name."""
    return _NAME.fullmatch(name) is not None


class Registry:
    """Makes, finds and deletes VMs; from any thread."""

    def __init__(
        self,
        max_vms: int,
        max_vcpus: int = MAX_VCPUS,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._max_vms = max_vms
        self._limits = Limits(max_vcpus, access_ns, deadlines if deadlines is not None else Deadlines())
        self._lock = threading.Lock()
        self._vms: dict[str, Vm] = {}
        self._names: list[str] = []  # of the VMs, in order
        self._reserved: set[str] = set()  # names of VMs that are being made
        self._last_number = 0
        self.on_made: Callable[[Vm], None] | None = None  # called with each new VM before a client can find it

    def create(
        self, name: str = "", virtual: bool = False, properties: Properties = _USUAL, architecture: int = X86
    ) -> Vm:
        """A new VM; an empty name lets the registry pick one. EEXIST, EINVAL for a malformed name, ENOSPC.

        The clock is virtual or real.
        """
        kind = find_architecture(architecture)
        clock = VirtualClock() if virtual else RealClock(self._limits.deadlines)
        return self._add(name, lambda name: kind.make(name, clock, self._limits, properties))

    def restore(self, name: str, state: VmState) -> Vm:
        """A VM from a snapshot; as create, and EINVAL for a state that no VM can have."""
        kind = find_architecture(state.architecture)
        return self._add(name, lambda name: kind.restore(name, state, self._limits))

    def _add(self, name: str, make: Callable[[str], Vm]) -> Vm:
        # Making a VM can take long, and other calls go on meanwhile: the name is reserved until then.
        name = self._reserve(name)
        try:
            vm = make(name)
            if self.on_made is not None:
                self.on_made(vm)
        except BaseException:
            with self._lock:
                self._reserved.remove(name)
            raise
        with self._lock:
            self._reserved.remove(name)
            self._vms[name] = vm
            insort(self._names, name)
        log.info("VM made", extra=fields(vm=name, vms=len(self._names)))
        return vm

    def _reserve(self, name: str) -> str:
        """Take a name, or pick one."""
        if name and not is_name(name):
            raise invalid(
                f"{quoted(name)} is no VM name: use 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
            )
        with self._lock:
            if name in self._vms or name in self._reserved:
                raise VmError(
                    errno.EEXIST, f"there is a VM {quoted(name)} already: choose another name, or delete that VM first"
                )
            if len(self._vms) + len(self._reserved) >= self._max_vms:
                raise VmError(errno.ENOSPC, f"there are {self._max_vms} VMs, the most that this daemon allows")
            while not name or name in self._vms or name in self._reserved:
                self._last_number += 1
                name = f"vm-{self._last_number}"
            self._reserved.add(name)
            return name

    def get(self, name: str) -> Vm:
        """The VM of this name: ENOENT without one."""
        vm = self._vms.get(name)
        if vm is None:
            raise VmError(errno.ENOENT, f"there is no VM {quoted(name)}")
        return vm

    def after(self, name: str, most: int) -> list[Vm]:
        """The next VMs after a name, in the order of names; the first ones if the name is empty."""
        with self._lock:
            start = bisect_right(self._names, name)
            return [self._vms[name] for name in self._names[start : start + most]]

    def delete(self, name: str) -> None:
        """Delete the VM of this name: ENOENT without one."""
        with self._lock:
            vm = self.get(name)
            self._remove(vm)
        self._delete(vm)

    def delete_vm(self, vm: Vm) -> None:
        """Delete this VM, but not a new VM of the same name."""
        with self._lock:
            if self._vms.get(vm.name) is not vm:
                return
            self._remove(vm)
        self._delete(vm)

    def _delete(self, vm: Vm) -> None:
        # Log this before the Sessions' threads log the ends of the Sessions.
        log.info("VM deleted", extra=fields(vm=vm.name, vms=len(self._names)))
        vm.delete()

    def _remove(self, vm: Vm) -> None:
        del self._vms[vm.name]
        del self._names[bisect_left(self._names, vm.name)]

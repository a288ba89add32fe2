"""What a client may make the daemon hold: every queue, size and count that one controls has its bound here."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass, replace

from irqchip.port import POLL_NS
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.regions import ACCESS_NS

# The most bytes that an operation's result takes in its batch's answer, but for what can be large, and an error without
# its words.
LEAST_RESULT = 24


@dataclass(frozen=True, slots=True)
class Limits:
    """The daemon's limits; the command line has a flag for each."""

    vms: int = 16384
    vcpus: int = MAX_VCPUS  # a VM
    sessions: int = 4096  # Sessions and Watches, of all VMs together
    message_bytes: int = 1 << 20  # of what a client sends, and of the results of a batch
    batch_operations: int = 4096
    queued_events: int = 1024  # a Session, or a Watch
    irqfds: int = 1024  # and eventfds of doorbells, of all Sessions together; each has a descriptor or two
    poll_us: int = POLL_NS // 1000  # that the port polls before it blocks, at the most
    access_ms: int = ACCESS_NS // 1_000_000  # that the owner of a region may take to answer an access

    @property
    def operations(self) -> int:
        """The most operations per batch, by which the answer always fits into a message."""
        return min(self.batch_operations, self.message_bytes // LEAST_RESULT)

    def within_descriptors(self) -> Limits:
        """These, with eventfds that leave three quarters of the process's descriptors for clients."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each has a descriptor, and a second one if it is resampled.
        return self if most == resource.RLIM_INFINITY else replace(self, irqfds=min(self.irqfds, most // 8))


def allow_descriptors() -> None:
    """Let the process have as many descriptors as it may: each client has one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a hard limit of more than the kernel's own: then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""irqfds beside the kernel's own: which may be assigned, and the values of their counters."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

from irqchip_client import Client, IrqchipError, Session
from tests.conformance.kvm import Kvm, KvmVm
from tests.waiting import PATIENCE

DEASSIGN, RESAMPLE = 1, 2
GSI = 20

# Assigns an irqfd: eventfd, GSI, flags, resamplefd.
Assign = Callable[[int, int, int, int], int]


@pytest.fixture
def kernel(kvm: Kvm) -> Iterator[Assign]:
    with KvmVm(kvm) as vm:
        vm.create_irqchip()

        def assign(eventfd: int, gsi: int, flags: int, resamplefd: int) -> int:
            try:
                vm.irqfd(eventfd, gsi, flags, resamplefd)
            except OSError as error:
                return error.errno or -1
            return 0

        yield assign


@pytest.fixture
def daemon(irqchip_client: Client) -> Iterator[Assign]:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    with vm.session() as session:
        yield _assign_to(session)
    vm.delete()


def _assign_to(session: Session) -> Assign:
    def assign(eventfd: int, gsi: int, flags: int, resamplefd: int) -> int:
        try:
            if flags & DEASSIGN:
                session.deassign_irqfd(eventfd, gsi)
            else:
                session.assign_irqfd(eventfd, gsi, resamplefd if flags & RESAMPLE else None)
        except IrqchipError as error:
            return error.errno
        return 0

    return assign


def story(assign: Assign) -> list[int]:
    """Assignments that a VMM may try, and their errnos."""
    first, second, third = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
    copy = os.dup(first)
    reader, writer = os.pipe()
    answers = [
        assign(first, GSI, DEASSIGN, 0),
        assign(first, GSI, 0, 0),
        assign(first, GSI, 0, 0),
        assign(copy, GSI + 1, 0, 0),
        assign(second, GSI, 0, 0),
        assign(first, GSI + 1, DEASSIGN, 0),
        assign(copy, GSI, 0, 0),
        assign(copy, GSI, DEASSIGN, 0),
        assign(first, 4096, 0, 0),
        assign(reader, GSI, 0, 0),
        assign(reader, GSI, DEASSIGN, 0),
        assign(third, GSI, RESAMPLE, reader),
        assign(third, GSI, RESAMPLE, second),
        assign(third, GSI, RESAMPLE, second),
        assign(third, GSI, DEASSIGN, 0),
    ]
    for descriptor in (first, second, third, copy, reader, writer):
        os.close(descriptor)
    return answers


def counters(assign: Assign) -> list[int]:
    """The value left in an eventfd after each step; 0 is drained."""
    eventfd = os.eventfd(7, os.EFD_NONBLOCK)
    poll = select.poll()
    poll.register(eventfd, select.POLLIN)

    def left(drained: bool) -> int:
        deadline = time.monotonic() + PATIENCE
        while drained and poll.poll(0) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        return int(bool(poll.poll(0)))

    seen = [assign(eventfd, GSI, 0, 0), left(drained=False)]
    os.eventfd_write(eventfd, 3)
    seen.append(left(drained=True))
    os.eventfd_write(eventfd, 1)
    seen.append(left(drained=True))
    seen.append(assign(eventfd, GSI, DEASSIGN, 0))
    os.eventfd_write(eventfd, 1)
    seen.append(left(drained=False))
    os.close(eventfd)
    return seen


def test_assignments_have_the_kernels_errnos(kernel: Assign, daemon: Assign) -> None:
    answers = story(kernel)
    assert errno.EBUSY in answers
    assert errno.EINVAL in answers
    assert story(daemon) == answers


def test_counters_have_the_kernels_values(kernel: Assign, daemon: Assign) -> None:
    seen = counters(kernel)
    assert seen == [0, 1, 0, 0, 0, 1]
    assert counters(daemon) == seen

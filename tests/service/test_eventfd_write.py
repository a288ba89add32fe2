"""An eventfd is signalled as the kernel signals it, and its holder cannot make the daemon wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from irqchipd.edge.eventfd_write import AioWriter, writer
from irqchipd.edge.eventfds import _Signalled
from tests.waiting import PATIENCE

FULL = (1 << 64) - 2  # the largest value that a write can reach


@pytest.fixture
def eventfd() -> Iterator[int]:
    eventfd = os.eventfd(0)
    yield eventfd
    os.close(eventfd)


def test_every_signal_adds_one(eventfd: int) -> None:
    for _ in range(1000):
        writer().add_one(eventfd)
    assert os.eventfd_read(eventfd) == 1000


def test_a_full_counter_does_not_block(eventfd: int) -> None:
    os.eventfd_write(eventfd, FULL)
    for _ in range(3):
        writer().add_one(eventfd)
    assert os.eventfd_read(eventfd) == FULL + isinstance(writer(), AioWriter)  # KVM: eventfd_signal's ULLONG_MAX
    writer().add_one(eventfd)
    assert os.eventfd_read(eventfd) == 1


def test_a_counter_that_fills_meanwhile_does_not_block(eventfd: int) -> None:
    if not isinstance(writer(), AioWriter):
        pytest.skip("this system has no AIO")
    signalled = [_Signalled(os.dup(eventfd)) for _ in range(2)]
    rounds, start, end = 1000, threading.Barrier(3), threading.Barrier(3)

    def signal(one: _Signalled) -> None:
        for _ in range(rounds):
            start.wait()
            one.signal()
            end.wait()

    threads = [threading.Thread(target=signal, args=(one,), daemon=True) for one in signalled]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        os.eventfd_write(eventfd, FULL - 1)
        start.wait(PATIENCE)
        end.wait(PATIENCE)
        os.eventfd_read(eventfd)
    for one in signalled:
        one.close()


def test_another_descriptor_than_an_eventfd_is_refused(eventfd: int) -> None:
    if not isinstance(writer(), AioWriter):
        pytest.skip("this system has no AIO")
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            writer().add_one(write)
    finally:
        os.close(read)
        os.close(write)
    writer().add_one(eventfd)
    assert os.eventfd_read(eventfd) == 1

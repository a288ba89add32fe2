"""The port's thread: the order of turns, and one client's failures and delays do not affect others."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import batch, port
from irqchipd.edge.work import Work as PortWork
from irqchipd.vm.backlog import Backlog
from irqchipd.vm.pending import Pending
from tests.builds import needs_sources
from tests.service.inprocess import Served, served
from tests.service.test_port import MSR_READ, PIO_READ
from tests.threads import switch_interval
from tests.waiting import PATIENCE, eventually

TSC = 0x10


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, irqfds=2) as here:
        yield here


def descriptors() -> int:
    """The number of descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


class Work(PortWork):
    """Work that the port does in pieces."""

    def __init__(self, holder: object, do: Callable[[], Pending | None]) -> None:
        super().__init__()
        self._holder = holder
        self._do = do

    @property
    def holder(self) -> object:
        return self._holder

    def go_on(self) -> Pending | None:
        return self._do()


def test_a_handler_that_fails_takes_no_event_from_others(here: Served) -> None:
    eventfds = [os.eventfd(0) for _ in range(3)]
    inside, go_on, heard = threading.Event(), threading.Event(), threading.Event()

    def fail(_: int) -> None:
        inside.set()
        go_on.wait(PATIENCE)
        raise ZeroDivisionError

    def fail_now(_: int) -> None:
        raise ZeroDivisionError

    try:
        here.port.watch(eventfds[0], fail, select.EPOLLIN | select.EPOLLET)
        here.port.watch(eventfds[1], fail_now, select.EPOLLIN | select.EPOLLET)
        here.port.watch(eventfds[2], lambda _: heard.set(), select.EPOLLIN | select.EPOLLET)
        os.eventfd_write(eventfds[0], 1)
        assert inside.wait(PATIENCE)
        for eventfd in eventfds[1:]:  # both are reported in one turn
            os.eventfd_write(eventfd, 1)
        go_on.set()
        assert heard.wait(PATIENCE)
    finally:
        for eventfd in eventfds:
            os.close(eventfd)


# The order of turns.


@needs_sources
def test_a_lightly_used_vm_does_not_wait_for_a_heavily_used_one(here: Served) -> None:
    order: list[object] = []

    def add(holder: str) -> Callable[[], Pending | None]:
        def do() -> Pending | None:
            order.append(holder)
            time.sleep(0.001)
            return None

        return do

    quiet = Work("quiet", add("quiet"))

    def ask() -> Pending | None:
        here.port.do_later(quiet)
        return add("noisy")()

    for number in range(60):
        here.port.do_later(Work("noisy", ask if number == 10 else add("noisy")))
    eventually(lambda: len(order) == 61)
    assert order.index("quiet") <= 10 + 3


def test_a_vm_does_not_pay_for_the_work_done_before_its_packet(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "PASS_NS", 10**12)

    def paid(vm: str) -> int:
        """What a VM pays, in nanoseconds, whose packet comes in the same pass as 50 ms of other work."""
        eventfds = [os.eventfd(0) for _ in range(3)]
        inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

        def hold(_: int) -> None:
            inside.set()
            go_on.wait(PATIENCE)

        def receive(_: int) -> None:
            time.sleep(0.05)

        def do_at_once(_: int) -> None:
            assert here.port.allows(vm)
            done.set()

        try:
            for eventfd, handler in zip(eventfds, (hold, receive, do_at_once), strict=True):
                here.port.watch(eventfd, handler, select.EPOLLIN | select.EPOLLET)
            os.eventfd_write(eventfds[0], 1)
            assert inside.wait(PATIENCE)
            for eventfd in eventfds[1:]:  # both are handled in one pass
                os.eventfd_write(eventfd, 1)
            go_on.set()
            assert done.wait(PATIENCE)
            eventually(lambda: vm in here.port._work._used)
            return here.port._work._used[vm]
        finally:
            for eventfd in eventfds:
                here.port.unwatch(eventfd)
                os.close(eventfd)

    # A VM pays for the time of the clock: what else the machine does may come into it, but not always.
    assert any(paid(f"vm{attempt}") < 40_000_000 for attempt in range(20))


@needs_sources
def test_work_that_waits_for_an_answer_is_not_begun_again(here: Served) -> None:
    backlog = Backlog()
    begun: list[int] = []

    def wait() -> Pending | None:
        begun.append(1)
        return None if backlog.done else backlog

    work = Work("vm", wait)
    eventfd = os.eventfd(0)
    here.port.watch_eventfd(eventfd, work)
    for _ in range(100):
        os.eventfd_write(eventfd, 1)
        time.sleep(0.0005)
    eventually(lambda: begun)
    assert len(begun) == 1
    for go_on in backlog.end():
        go_on()
    eventually(lambda: len(begun) == 2)
    os.eventfd_write(eventfd, 1)
    eventually(lambda: len(begun) == 3)
    here.port.unwatch(eventfd)
    os.close(eventfd)


@needs_sources
def test_a_waiting_batch_is_finished_before_the_clients_next_batch(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work comes in between, and the next batch has already arrived."""
    here.vm()
    with closing(here.peer(vm="vm")) as peer:
        monkeypatch.setattr(batch, "SLICE_NS", 0)
        monkeypatch.setattr(port, "PASS_NS", 0)
        allowed = itertools.cycle((True, False))
        monkeypatch.setattr(here.port, "allows", lambda _: next(allowed))
        busy = Work("other", lambda: here.port.do_later(busy))
        here.port.do_later(busy)
        for serial in range(20):
            peer.submit(serial, *[pb.Operation(pio_read=pb.PioReadRequest(vcpu=0, port=0x21, size=1))] * 3)
        assert [peer.receive().batch_result.serial for _ in range(20)] == list(range(20))


# Connections without a Session.


def test_the_oldest_unopened_connection_is_closed_and_none_counts_as_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "MAX_UNOPENED", 4)
    with served(tmp_path, places=2) as here:
        here.vm()
        unopened = [here.peer() for _ in range(7)]
        assert [peer.end() for peer in unopened[:3]] == ["ENOSPC"] * 3
        sessions = [here.peer(vm="vm")]  # closes one more, then becomes a Session
        assert unopened[3].end() == "ENOSPC"
        sessions.append(here.peer(vm="vm"))  # the Sessions alone fill the limit
        assert not select.select([peer.socket for peer in unopened[4:]], (), (), 0)[0]
        for peer in (*unopened, *sessions):
            peer.close()
        eventually(lambda: here.connections == 0)


def test_connecting_and_leaving_beside_an_unopened_connection_keeps_nothing(here: Served) -> None:
    with closing(here.peer()):
        eventually(lambda: here.connections == 1)
        before = descriptors()
        for _ in range(2000):
            here.peer().close()
        eventually(lambda: here.connections == 1)
        assert len(here.port._unopened) == 1
        assert len(here.port._handlers) == 3, "the listener's, the waking one's and the connection's"
        assert descriptors() == before


@needs_sources
def test_a_deadline_at_which_the_port_fails_ends_neither_its_thread_nor_other_deadlines(
    here: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(port, "OPENING_TIMEOUT", 0.2)
    here.vm()
    checked: list[object] = []

    class Failing:
        def has_stalled(self) -> bool:
            checked.append(self)
            raise ZeroDivisionError

    with closing(here.peer(vm="vm")) as session, closing(here.peer()) as unopened:
        here.port._suspects.update(dict.fromkeys((Failing(), Failing()), 0.0))  # type: ignore[arg-type]
        assert unopened.end() == "ETIMEDOUT"
        assert len(checked) == 2
        assert not here.port._suspects
        session.send_records(1, (PIO_READ, 1, 0, 0x21, 0))
        assert session.receive_results(1)[0] == 1
    assert "the port failed at a deadline" in caplog.text


# Descriptors.


@pytest.mark.parametrize("announced", [0, 1, 2])
def test_unused_descriptors_are_closed_at_once(here: Served, announced: int) -> None:
    """Before a Session is opened, in a Session, and with the message that announces other descriptors."""
    here.vm()
    before = descriptors()
    with closing(here.peer(**({"vm": "vm"} if announced else {}))) as peer:
        follow = pb.SessionRequest(descriptors=pb.DescriptorsFollow()).SerializeToString()
        if announced == 2:
            peer.socket.send(follow)
        read, write = os.pipe()
        socket.send_fds(peer.socket, [follow], [read] * 253)
        os.close(read)
        poll = select.poll()
        poll.register(write, 0)
        assert poll.poll(1000 * PATIENCE), "the daemon keeps no descriptor, even if the connection stays open"
        os.close(write)
        if announced != 1:
            assert peer.end() == "EINVAL"
    eventually(lambda: descriptors() == before)
    eventually(lambda: here.in_use._held == 0)


def test_a_reused_descriptor_number_is_served(here: Served) -> None:
    here.vm()
    for _ in range(200):
        with closing(here.peer(vm="vm")) as peer:
            peer.send_records(1, (PIO_READ, 1, 0, 0x21, 0))
            assert peer.receive_results(1)[0] == 1
    eventually(lambda: here.connections == 0)


# Answers.


def test_no_answer_exceeds_the_size_of_a_message(here: Served) -> None:
    vm = here.vm()
    vm.msr_write(0, TSC, (1 << 64) - (1 << 40))
    with closing(here.peer(vm="vm")) as peer:
        most = peer.opened.max_operations
        assert most == 2730
        read = pb.Operation(msr_read=pb.MsrReadRequest(vcpu=0, msr=TSC))
        peer.submit(7, *[read] * most)
        message = peer.receive()
        assert message.ByteSize() <= peer.opened.max_message_bytes
        assert {result.msr_read.claimed for result in message.batch_result.results} == {True}
        peer.send_records(8, *[(MSR_READ, 0, 0, TSC, 0)] * most)
        serial, results, texts = peer.receive_results(most)
        assert (serial, len(results), texts) == (8, most, b"")
        peer.submit(9, *[read] * (most + 1))
        assert peer.receive().batch_result.error.reason == errno.errorcode[errno.E2BIG]
        peer.send_records(10, *[(MSR_READ, 0, 0, TSC, 0)] * (most + 1))
        assert peer.end() == "E2BIG"


def test_a_long_batch_gives_others_their_turns_between_its_operations(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "SLICE_NS", 0)
    here.vm("noisy")
    here.vm("quiet")
    with (
        closing(here.peer(vm="noisy")) as noisy,
        closing(here.peer(vm="quiet")) as quiet,
        switch_interval(1e-4),  # the port's thread is in this process
    ):
        for attempt in range(20):  # this process may be preempted for as long as a batch takes
            for _ in range(5):
                noisy.submit(attempt, *[pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))] * 300)
            for _ in range(3):
                quiet.send_records(1, (PIO_READ, 1, 0, 0x21, 0))
                quiet.receive_results(1)
            overtaken = not select.select((noisy.socket,), (), (), 0)[0]
            for _ in range(5):
                noisy.receive()
            if overtaken:
                return
        pytest.fail("a batch of 300 operations was always done before 3 operations of another VM")

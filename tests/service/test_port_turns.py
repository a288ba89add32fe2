"""The port's thread: what fails for one client is not the others'."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.edge.port import Port
from irqchipd.edge.session import Places
from irqchipd.limits import Limits
from irqchipd.vm.registry import Registry


def test_a_handler_that_fails_takes_no_event_from_others(tmp_path: Path) -> None:
    port = Port(Registry(1, 1), Limits(), Places(1), EventfdsInUse(1), tmp_path / "port")
    eventfds = [os.eventfd(0) for _ in range(3)]
    inside, go_on, heard = threading.Event(), threading.Event(), threading.Event()

    def fail(_: int) -> None:
        inside.set()
        go_on.wait(5)
        raise ZeroDivisionError

    def fail_now(_: int) -> None:
        raise ZeroDivisionError

    try:
        port.watch(eventfds[0], fail, select.EPOLLIN | select.EPOLLET)
        port.watch(eventfds[1], fail_now, select.EPOLLIN | select.EPOLLET)
        port.watch(eventfds[2], lambda _: heard.set(), select.EPOLLIN | select.EPOLLET)
        os.eventfd_write(eventfds[0], 1)
        assert inside.wait(5)
        for eventfd in eventfds[1:]:  # both are told of in one turn
            os.eventfd_write(eventfd, 1)
        go_on.set()
        assert heard.wait(2)
    finally:
        port.stop()
        for eventfd in eventfds:
            os.close(eventfd)

"""What looking costs a VM: at most a tenth of its throughput, with the page open in Chromium.

Two daemons do the same by turns, of which one is looked at. A daemon's throughput is what it does in a second of a
processor, so that neither Chromium nor other programs on the machine count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from irqchip_client import Client, S390IrqType, Session, Vm, ops
from irqchip_client._daemon import Daemon
from irqchip_client.arm64 import CPU_INTERFACE, spi
from tests.page.browser import CHROMIUM, Browser
from tests.page.guests import SERIAL, arm64_vm, s390_vm, x86_vm
from tests.page.pages import page
from tests.waiting import PATIENCE

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: on Debian, apt-get install chromium"),
]

ROUNDS, MOST_ROUNDS = 15, 60  # more on a machine on which the times vary
WINDOW = 0.6  # seconds, in which there are six looks
IN_FLIGHT = 8  # batches
SHARE = 0.9  # of the throughput, that is left


# An interrupt of a device, which a guest takes and ends.
WORK: dict[str, tuple[Callable[[Client], Vm], list[ops.Call[Any]]]] = {
    "x86": (
        x86_vm,
        [
            ops.irq_line(SERIAL, True),
            ops.irq_line(SERIAL, False),
            ops.ack_interrupt(0),
            ops.mmio_write(0, 0xFEE0_00B0, 0),
        ],
    ),
    "arm64": (
        arm64_vm,
        [
            ops.irq_line(spi(4), True),
            ops.mmio_read(0, CPU_INTERFACE + 0xC),
            ops.irq_line(spi(4), False),
            ops.mmio_write(0, CPU_INTERFACE + 0x10, 36),
        ],
    ),
    "s390": (s390_vm, [ops.s390_interrupt(S390IrqType.VIRTIO, 0x2603, 0x77), ops.take_irq(0)]),
}


class Driven:
    """A daemon that does operations as fast as it can."""

    def __init__(self, daemon: Daemon, session: Session, work: list[ops.Call[Any]]) -> None:
        self._daemon = daemon
        self._session = session
        self._work = work

    def _busy(self) -> int:
        """The nanoseconds that the daemon has had a processor. Kernel: Documentation/scheduler/sched-stats.rst."""
        tasks = Path(f"/proc/{self._daemon.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def throughput(self) -> float:
        """Operations in a second of a processor."""
        begun, before, count = time.monotonic(), self._busy(), 0
        flying = [self._session.submit(self._work) for _ in range(IN_FLIGHT)]
        while flying:
            flying.pop(0).result(PATIENCE)
            count += len(self._work)
            if time.monotonic() < begun + WINDOW:
                flying.append(self._session.submit(self._work))
        return count * 1e9 / (self._busy() - before)


def share(alone: Driven, watched: Driven) -> float:
    """What the daemon that is looked at does, of what the other one does."""
    without = alone.throughput()
    return watched.throughput() / without


@pytest.mark.parametrize("architecture", WORK)
def test_a_vm_keeps_nine_tenths_of_its_throughput(architecture: str, chromium: Browser) -> None:
    make, work = WORK[architecture]
    with ExitStack() as stack:
        driven: list[Driven] = []
        for looked_at in (False, True):
            served = stack.enter_context(page())
            client = stack.enter_context(served.daemon.connect())
            vm = make(client)
            driven.append(Driven(served.daemon, stack.enter_context(vm.session("load")), work * 16))
            if looked_at:
                chromium.call("Page.navigate", url=f"{served.url}#{vm.name}")
                chromium.wait("document.querySelector('#status.live')")
        alone, watched = driven
        kept: list[float] = []
        share(alone, watched)  # to get warm
        while len(kept) < ROUNDS or (statistics.median(kept) < SHARE and len(kept) < MOST_ROUNDS):
            kept.append(share(alone, watched))
        numbers = chromium.evaluate("document.getElementById('position').innerText")
        chromium.leave()
    print(f"{architecture}: {statistics.median(kept):.3f} of the throughput, of {len(kept)} rounds; {numbers}")
    assert int(numbers.rpartition(" ")[2]) > ROUNDS * 100, "the page has seen what happened"
    assert statistics.median(kept) >= SHARE

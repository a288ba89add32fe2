"""Count the daemon's work for one event: Python calls, their files, and changes from one file to another.

Each of the three walks uses Sessions on the port and a daemon that is otherwise idle:

    IrqLine to a halted vCPU   a device's record; the vCPU's halt is answered
    region access              a vCPU's record, the event for the region's owner, the owner's record, the vCPU's answer
    port read                  a vCPU's record that a chip answers

    python tools/walk.py             print the table
    python tools/walk.py --calls     print every call in order, too

Before the edges had one batch loop and one table of operations the table was:

    walk                          calls  files  changes of file
    IrqLine to a halted vCPU         82     18               49
    region access and answer        108     16               64
    port read                        20      9               13
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DAEMON = (f"{ROOT}/server/irqchipd/", f"{ROOT}/proto/irqchip/")
THREADS = ("MainThread", "irqchipd ")  # of the daemon
QUIET = 0.03  # seconds until the daemon is idle again
TIMES = 5  # each walk is repeated; the most frequent count is reported

GSI, VECTOR, PORT = 20, 0x51, 0x300
LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000

# A call: the file, and the function.
Calls = tuple[tuple[str, str], ...]


class Counting:
    """Records the daemon's calls while it is on."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] = []
        self._on = False

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call by a daemon's thread; the client's threads use proto/irqchip, too."""
        if self._on and event == "call" and threading.current_thread().name.startswith(THREADS):
            code = frame.f_code
            if code.co_filename.startswith(DAEMON):
                self._calls.append((os.path.relpath(code.co_filename, ROOT), code.co_qualname))

    def walk(self, do: Callable[[], object], undo: Callable[[], object]) -> Calls:
        """The calls of an action that is repeated, and undone each time without being counted."""
        seen: Counter[Calls] = Counter()
        for _ in range(TIMES):
            time.sleep(QUIET)
            self._calls = []
            self._on = True
            do()
            time.sleep(QUIET)
            self._on = False
            seen[tuple(self._calls)] += 1
            undo()
        return seen.most_common(1)[0][0]


def changes(calls: Calls) -> int:
    """The number of calls in another file than the call before."""
    return sum(one[0] != other[0] for one, other in pairwise(calls))


def walks(target: str, counting: Counting) -> dict[str, Calls]:
    """Do the walks, as a client of the daemon."""
    from irqchip_client import Space, connect, ops
    from irqchip_client import Vm as ClientVm

    def prepared(vm: ClientVm) -> None:
        vm.create_irqchip()
        cpu = vm.create_vcpu(0)
        cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
        for register, value in ((0x10 + 2 * GSI + 1, 0), (0x10 + 2 * GSI, VECTOR)):
            cpu.mmio_write(IOAPIC, register)
            cpu.mmio_write(IOAPIC + 0x10, value)

    found: dict[str, Calls] = {}
    with connect(target) as client:
        vm = client.create_vm("walk")
        prepared(vm)
        with vm.session("device") as device, vm.session("vcpu") as vcpu:
            threads: list[threading.Thread] = []

            def begin(*calls: Any) -> None:
                threads.append(threading.Thread(target=vcpu.run, args=(calls,)))
                threads[-1].start()

            def halt() -> None:
                begin(ops.halt(0))

            def interrupt() -> None:
                device.run([ops.irq_line(GSI, True)])
                threads.pop().join()

            def again() -> None:
                device.run([ops.irq_line(GSI, False)])
                vcpu.run([ops.mmio_write(0, LAPIC + 0xB0, 0)])
                halt()

            halt()
            found["IrqLine to a halted vCPU"] = counting.walk(interrupt, again)
            device.run([ops.irq_line(GSI, True)])
            threads.pop().join()

            device.run([ops.register_region(Space.PIO, PORT, 1)])

            def access() -> None:
                begin(ops.pio_read(0, PORT, 1))
                event: Any = device.next_event(5)
                device.run([ops.complete_access(event.access, 1)])
                threads.pop().join()

            found["region access and answer"] = counting.walk(access, lambda: None)
            found["port read"] = counting.walk(lambda: vcpu.run([ops.pio_read(0, 0x21, 1)]), lambda: None)
    return found


def report(found: dict[str, Calls], every_call: bool) -> None:
    """Print the table."""
    print(f"{'walk':<28}{'calls':>7}{'files':>7}{'changes of file':>17}")
    for name, calls in found.items():
        print(f"{name:<28}{len(calls):>7}{len({file for file, _ in calls}):>7}{changes(calls):>17}")
    if every_call:
        for name, calls in found.items():
            print(f"\n{name}")
            for file, function in calls:
                print(f"    {file:<40} {function}")


def main() -> None:
    """Run the daemon in this process's main thread, and the client in another."""
    os.environ["IRQCHIP_PORT"] = "0"  # without polling, whose calls depend on time
    sys.path[:0] = [str(ROOT / folder) for folder in ("proto", "server", "client")]
    from irqchipd.__main__ import main as daemon

    counting = Counting()
    every_call = "--calls" in sys.argv[1:]
    threading.setprofile(counting.profile)
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "irqchipd.sock"

        def client() -> None:
            try:
                while not socket.exists():
                    time.sleep(0.01)
                report(walks(f"unix://{socket}", counting), every_call)
                sys.stdout.flush()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=client, daemon=True).start()
        daemon(["--listen", f"unix://{socket}", "--poll", "0", "--log-level", "warning"])


if __name__ == "__main__":
    main()

"""A vCPU of an arm64 machine, on Unicorn, in a process of its own. vCPU 0's process creates the VM.

python -m examples.arm64_vcpu --vcpu 0 --folder /tmp/machine --kernel examples/guest/guest-arm64.elf
python -m examples.arm64_vcpu --vcpu 1 --folder /tmp/machine

The processes share the guest's memory, a file in the folder. When the guest turns vCPU 1 on (PSCI's CPU_ON), vCPU 0's
process writes the address of vCPU 1's first instruction into another file there. An instruction that is atomic on a
processor is not atomic between two emulators. So the guest must not need atomic instructions: see docs/unicorn.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from examples.options import parser, short_errors
from irqchip_client import NotFound, SessionClosed, Vm, connect
from irqchip_client.unicorn import Arm64Start, GuestMemory, UnicornArm64Vcpu
from irqchip_client.vmm.arm64 import RAM, create_arm64_machine, load_arm64

SIZE = 16 << 20  # bytes of RAM
PATIENCE = 60.0  # seconds


class Switches:
    """The machine's power: a file for each vCPU that is on. An affinity is a vCPU's id, as there are fewer than 16."""

    def __init__(self, folder: Path, vcpus: int) -> None:
        self._folder = folder
        self._vcpus = vcpus

    def file(self, vcpu: int) -> Path:
        """The file with the beginning of a vCPU."""
        return self._folder / f"vcpu{vcpu}.json"

    def is_on(self, affinity: int) -> bool | None:
        """Whether a vCPU is on; None if there is no such vCPU."""
        return self.file(affinity).exists() if affinity < self._vcpus else None

    def turn_on(self, affinity: int, start: Arm64Start) -> bool:
        """Lets a vCPU's process begin."""
        new = self._folder / "new.json"
        new.write_text(json.dumps(dataclasses.asdict(start)))
        new.rename(self.file(affinity))  # so that no process reads a part of it
        return True

    def turn_off(self, *, reset: bool) -> None:
        """The vCPU's process ends, and vCPU 0's deletes the VM, which ends the others."""

    def await_start(self, vcpu: int) -> Arm64Start:
        """Waits until a vCPU is turned on."""
        wait(self.file(vcpu).exists, f"vCPU {vcpu} has not been turned on")
        return Arm64Start(**json.loads(self.file(vcpu).read_text()))


def wait(condition: Callable[[], object], otherwise: str) -> None:
    """Wait until a condition holds, or exit."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{otherwise} within {PATIENCE:g} s")
        time.sleep(0.02)


def open_memory(folder: Path) -> GuestMemory:
    """The guest's memory, which all its processes share."""
    file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, SIZE)
        return GuestMemory(SIZE, start=RAM, file=file)
    finally:
        os.close(file)


def execute(memory: GuestMemory, vm: Vm, vcpu: int, start: Arm64Start, switches: Switches) -> None:
    """Run the vCPU until the guest turns it off, or the VM is deleted."""
    with UnicornArm64Vcpu(memory, vm, vcpu, power=switches) as cpu:
        cpu.start(start)
        print(f"vCPU {vcpu} begins at {start.entry:#x}", flush=True)
        with suppress(SessionClosed, NotFound):
            cpu.run()


def has_come(vm: Vm, clients: list[str]) -> bool:
    """Whether clients of these names have claimed addresses."""
    return set(clients) <= {session.client for session in vm.info().sessions if session.regions}


def main() -> None:
    """Run the vCPU."""
    options = parser(__doc__)
    options.add_argument("--vcpu", type=int, required=True, help="the vCPU's number")
    options.add_argument("--vcpus", type=int, choices=range(1, 9), default=2, help="the number of vCPUs (2)")
    options.add_argument("--folder", type=Path, required=True, help="the folder that the vCPUs' processes share")
    options.add_argument("--gic", type=int, choices=[2, 3], default=3, help="vCPU 0: the GIC's version (3)")
    options.add_argument("--kernel", type=Path, metavar="FILE", help="vCPU 0: the guest")
    options.add_argument("--await", dest="awaited", action="append", default=[], metavar="CLIENT", help="wait for it")
    arguments = options.parse_args()
    switches = Switches(arguments.folder, arguments.vcpus)
    with short_errors(), connect(arguments.target) as client, open_memory(arguments.folder) as memory:
        if arguments.vcpu:
            start = switches.await_start(arguments.vcpu)
            execute(memory, client.vm(arguments.vm), arguments.vcpu, start, switches)
            return
        if arguments.kernel is None:
            options.error("vCPU 0 needs --kernel")
        for vcpu in range(arguments.vcpus):
            switches.file(vcpu).unlink(missing_ok=True)
        start = load_arm64(memory, arguments.kernel.read_bytes())
        with create_arm64_machine(client, arguments.vm, arguments.vcpus, arguments.gic) as vm:
            missing = f"{', '.join(arguments.awaited)} have not come"
            wait(lambda: has_come(vm, arguments.awaited), missing)
            switches.turn_on(0, start)
            execute(memory, vm, 0, start, switches)


if __name__ == "__main__":
    main()

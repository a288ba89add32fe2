"""A real KVM/arm64 on any machine: Debian's kernel in QEMU, which emulates EL2, with agent.c as the first process.

The machine's GIC decides which of KVM's GICs can be made: GICv2 or GICv3. It has 4 list registers and 5 priority bits.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.conformance.arm.program import ANSWER, OPERATION, Op, Program, pack, unpack
from tests.debian_kernel import fetch_kernel, kernel_image
from tests.ram_disk import write_cpio
from tests.this_machine import MissingError, find

SERIES = "6.12"  # irqchipd does as this series of kernels: later ones sort what is pending differently
QEMU, SETPRIV, COMPILER = "qemu-system-aarch64", "setpriv", "aarch64-linux-gnu-gcc"
OPTIONS = "-cpu cortex-a57 -nographic -nodefaults -serial stdio -no-reboot"
KERNEL_OPTIONS = "console=ttyAMA0 quiet panic=-1 loglevel=4 mem=256M"
TRAPPED = " ".join(f"kvm-arm.vgic_v3_{what}_trap=1" for what in ("group0", "group1", "common"))
AGENT = Path(__file__).with_name("agent.c")
BOOT_SECONDS, STUCK_SECONDS = 180.0, 90.0
POLL_SECONDS = 0.001

# The memory that the host and agent.c share: above the kernel's 256 MiB, which begin at 0x40000000.
MACHINE_MIB, SHARED_AT, SHARED_SIZE = 384, 256 << 20, 128 << 20
OPERATIONS_AT, ANSWERS_AT = 0x1000, 0x500_0000
MAX_OPERATIONS = (ANSWERS_AT - OPERATIONS_AT) // OPERATION.size
READY, REQUEST, ANSWERED, OPERATIONS, AT = range(0, 40, 8)
RELEASE, RELEASE_SIZE = 40, 64


def build(folder: Path) -> Path:
    """The agent, compiled, as a RAM disk in the folder. MissingError without a compiler for arm64."""
    root = folder / "root"
    root.mkdir(parents=True)
    command = [find(COMPILER), "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(root / "init"), str(AGENT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"with this {COMPILER} (is libc6-dev-arm64-cross installed?): {done.stderr.strip()}")
    with (folder / "initrd").open("wb") as file:
        write_cpio(file, root)
    return folder / "initrd"


class ArmKvm:
    """What boots machines: the kernel and the agent. MissingError if it cannot be had here."""

    def __init__(self, cache: Path, folder: Path) -> None:
        find(QEMU)
        find(SETPRIV)
        self.initrd = build(folder)
        self.kernel = kernel_image(fetch_kernel(cache, "arm64", SERIES))

    def boot(self, gic: int, *, trapped: bool = False) -> Recorder:
        """Boot a machine. `trapped`: the kernel's emulation answers ICC_ registers, and not the processor."""
        return Recorder(self, gic, TRAPPED if trapped else "")


class Recorder:
    """A running machine, which records programs. Close it, or use it in a with statement."""

    def __init__(self, kvm: ArmKvm, gic: int, options: str = "") -> None:
        self.gic = gic
        memory = os.memfd_create("arm64-kvm")
        os.ftruncate(memory, MACHINE_MIB << 20)
        self._memory = mmap.mmap(memory, SHARED_SIZE, offset=SHARED_AT)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        machine = f"virt,gic-version={gic},virtualization=on,memory-backend=ram"
        backend = f"memory-backend-file,id=ram,size={MACHINE_MIB}M,mem-path=/proc/self/fd/{memory},share=on"
        self._qemu = subprocess.Popen(
            [
                *(find(SETPRIV), "--pdeathsig", "KILL"),  # a process that is killed leaves no machine behind
                *(find(QEMU), "-M", machine, "-m", str(MACHINE_MIB), "-object", backend, *OPTIONS.split()),
                *("-kernel", str(kvm.kernel), "-initrd", str(kvm.initrd), "-append", f"{KERNEL_OPTIONS} {options}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[memory],
        )
        os.close(memory)
        self._requests = 0
        try:
            self._await_boot()
        except BaseException:
            self.close()
            raise
        release = bytes(self._memory[RELEASE : RELEASE + RELEASE_SIZE]).rstrip(b"\0").decode()
        self.kernel = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the machine."""
        self._qemu.kill()
        self._qemu.wait()
        self._log.close()
        self._memory.close()

    @property
    def process(self) -> int:
        """The id of QEMU's process."""
        return self._qemu.pid

    def record(self, programs: Sequence[Program]) -> list[dict[str, Any]]:
        """Traces: each program on a new VM, with its answers. Tens of thousands of operations at once are fastest."""
        return [
            {
                "family": program.family,
                "seed": program.seed,
                "gic": program.gic,
                "vcpus": program.vcpus,
                "kernel": self.kernel,
                "ops": ops,
            }
            for program, ops in zip(programs, self.run([program.ops for program in programs]), strict=True)
        ]

    def run(self, programs: Sequence[Sequence[Op]]) -> list[list[Op]]:
        """The operations of each program with their answers."""
        packed = [pack(ops) for ops in programs]
        if sum(len(data) for data, _ in packed) > MAX_OPERATIONS * OPERATION.size:
            half = len(programs) // 2
            assert half, "a program is too long"
            return self.run(programs[:half]) + self.run(programs[half:])
        self._execute(b"".join(data for data, _ in packed))
        done, at = [], ANSWERS_AT
        for ops, (data, places) in zip(programs, packed, strict=True):
            size = len(data) // OPERATION.size * ANSWER.size
            done.append(unpack(ops, places, self._memory[at : at + size]))
            at += size
        return done

    def _execute(self, operations: bytes) -> None:
        self._memory[OPERATIONS_AT : OPERATIONS_AT + len(operations)] = operations
        self._put(OPERATIONS, len(operations) // OPERATION.size)
        self._requests += 1
        self._put(REQUEST, self._requests)
        at, since = -1, time.monotonic()
        while self._get(ANSWERED) != self._requests:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if (reached := self._get(AT)) != at:
                at, since = reached, now
            elif self._qemu.poll() is not None or now - since > STUCK_SECONDS:
                code = operations[at * OPERATION.size :][: OPERATION.size].hex(" ")
                raise RuntimeError(f"the machine is stuck at operation {at} ({code}):\n{self._said()}")

    def _await_boot(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        while not self._get(READY):
            if self._qemu.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the machine did not boot:\n{self._said()}")
            time.sleep(0.05)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-3000:]

    def _get(self, at: int) -> int:
        value: int = struct.unpack_from("<Q", self._memory, at)[0]
        return value

    def _put(self, at: int, value: int) -> None:
        struct.pack_into("<Q", self._memory, at, value)

"""The arm64 demo guest on an independent machine: QEMU's virt board, which has no 16550A, so that the guest is mute."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from examples.guest.build import ARM64
from tests.waiting import PATIENCE

QEMU = shutil.which("qemu-system-aarch64")
TIMER, REQUEST, REPLY, SERIAL, DISK, SPURIOUS, OTHER = range(7)
CPU_SIZE = 64  # bytes: machine.h's struct cpu

pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-aarch64 is not installed")


class Machine:
    """QEMU with the guest, and its monitor."""

    def __init__(self, gic: int) -> None:
        command = [str(QEMU), "-M", f"virt,gic-version={gic}", "-cpu", "cortex-a72", "-smp", "2", "-m", "64"]
        command += ["-kernel", str(ARM64.binary), "-display", "none", "-serial", "none", "-monitor", "stdio"]
        self.qemu = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def counts(self) -> list[list[int]]:
        """The interrupts that each CPU has counted, by source."""
        assert self.qemu.stdin is not None
        assert self.qemu.stdout is not None
        self.qemu.stdin.write(f"xp /{2 * CPU_SIZE // 4}wx {symbol('cpus'):#x}\n")
        self.qemu.stdin.flush()
        words: list[int] = []
        while len(words) < 2 * CPU_SIZE // 4:
            line = self.qemu.stdout.readline()
            assert line, "QEMU has ended"
            if found := re.match(r"[0-9a-f]{16}: (.*)", line.strip()):
                words += [int(word, 16) for word in found[1].split()]
        return [words[at : at + 7] for at in (0, CPU_SIZE // 4)]


def symbol(name: str) -> int:
    """The address of a symbol in the guest's ELF file."""
    image = ARM64.binary.read_bytes()
    table, size, count = (
        struct.unpack_from("<Q", image, 0x28)[0],
        *struct.unpack_from("<2H", image, 0x3A),
    )
    sections = [struct.unpack_from("<2I4Q2I2Q", image, table + number * size) for number in range(count)]
    symbols = next(section for section in sections if section[1] == 2)
    strings = sections[symbols[6]][4]
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        text, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, at)
        if image[strings + text :].startswith(name.encode() + b"\0"):
            return int(value)
    raise KeyError(name)


@pytest.fixture(params=[2, 3], ids=["GICv2", "GICv3"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(request.param)
    yield machine
    machine.qemu.kill()
    machine.qemu.wait()


def test_both_cpus_tick_and_answer_each_others_sgis(machine: Machine) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        first, second = machine.counts()
        if min(first[TIMER], second[TIMER]) >= 50 and first[REPLY]:
            break
        assert time.monotonic() < deadline, (first, second)
        time.sleep(0.1)
    assert second[REQUEST] == first[REPLY] == 1  # as the guest begins
    assert first[SERIAL] == first[DISK] == first[OTHER] == second[OTHER] == 0

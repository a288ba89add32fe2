"""Bits of a memfd that the daemon sets, while others do the same."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from irqchipd.edge.guest_memory import PAGE, SharedMemory, check_memfd
from irqchipd.vm.errors import VmError

LENGTH = 4 * PAGE


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LENGTH)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def memory(memfd: int) -> Iterator[SharedMemory]:
    memory = SharedMemory(memfd, PAGE, LENGTH - PAGE)
    yield memory
    memory.close()


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(VmError) as info:
        call()
    return info.value.number


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5, PAGE, LENGTH - PAGE - 1])
@pytest.mark.parametrize("bit", range(8))
def test_a_bit_is_set_and_what_was_there_is_told(memory: SharedMemory, memfd: int, offset: int, bit: int) -> None:
    os.pwrite(memfd, bytes([0xFF & ~(1 << bit)]), PAGE + offset)
    assert memory.set_bits(offset, 1 << bit) == 0xFF & ~(1 << bit)
    assert memory.set_bits(offset, 1 << bit) == 0xFF
    contents = os.pread(memfd, LENGTH, 0)
    assert {at: byte for at, byte in enumerate(contents) if byte} == {PAGE + offset: 0xFF}


def test_no_bit_of_another_process_is_lost(memory: SharedMemory, memfd: int) -> None:
    program = (
        "import sys; from irqchipd.edge.guest_memory import SharedMemory\n"
        f"memory = SharedMemory(int(sys.argv[1]), {PAGE}, {LENGTH - PAGE})\n"
        "print(flush=True)\n"
        f"for at in range({LENGTH - PAGE}): memory.set_bits(at, 2)\n"
    )
    command = [sys.executable, "-c", program, str(memfd)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[memfd]) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for at in range(LENGTH - PAGE):
            memory.set_bits(at, 1)
    assert other.returncode == 0
    assert set(os.pread(memfd, LENGTH - PAGE, PAGE)) == {3}


def test_a_memfd_that_shrinks_is_gone(memory: SharedMemory, memfd: int) -> None:
    os.ftruncate(memfd, PAGE)
    assert memory.set_bits(0, 1) is None
    os.ftruncate(memfd, LENGTH)
    assert memory.set_bits(0, 1) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, LENGTH + 1), (PAGE, LENGTH), (1, 1), (LENGTH, 1), (0, 0), (1 << 62, PAGE), (0, 1 << 63)],
)
def test_memory_must_be_in_the_memfd(memfd: int, offset: int, length: int) -> None:
    assert refused(lambda: check_memfd(memfd, offset, length)) == errno.EINVAL


def test_only_a_memfd_that_can_be_written_is_memory(memfd: int) -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        of_a_pipe = refused(lambda: check_memfd(pipe, 0, PAGE))
    eventfd = os.eventfd(0)
    of_events = refused(lambda: check_memfd(eventfd, 0, PAGE))
    os.close(eventfd)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert [of_a_pipe, of_events, refused(lambda: SharedMemory(memfd, 0, PAGE))] == [errno.EINVAL] * 3

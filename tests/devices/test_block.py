"""The block device: its registers and commands as docs/devices.md describes them."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irqchip_client import IrqchipError, NotFound
from irqchip_client.devices.block import BlockDevice, Command, Error, Register, Status
from irqchip_client.devices.image_file import SECTOR
from tests.devices.bench import Bench

BASE, GSI = 0x620, 11
SECTORS = 8
CONTENT = random.Random(620).randbytes(SECTORS * SECTOR + 100)  # the last, partial sector is out of reach
SEEK = 0.01
SIZES = (1, 2, 4)


class Disk(Bench):
    """A guest's driver, and the disk's file."""

    def __init__(self, path: Path, *, read_only: bool = False, seek: float = SEEK) -> None:
        self.path = path
        self.block = BlockDevice(path, BASE, GSI, read_only=read_only, seek=seek)
        super().__init__(self.block)

    def command(self, command: int, sector: int = 0) -> None:
        self.write(BASE + Register.SECTOR, sector, 4)
        self.write(BASE + Register.COMMAND, command)

    @property
    def status(self) -> int:
        return self.read(BASE + Register.STATUS)

    @property
    def error(self) -> int:
        return self.read(BASE + Register.ERROR)

    @property
    def pending(self) -> int:
        return self.read(BASE + Register.INTERRUPT)

    def data(self, size: int, count: int = SECTOR) -> bytes:
        return self.read_data(BASE + Register.DATA, count, size)

    def fill(self, data: bytes, size: int) -> None:
        self.write_data(BASE + Register.DATA, data, size)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(image: Path) -> Disk:
    return Disk(image)


@pytest.mark.parametrize("size", SIZES)
def test_a_read_is_busy_for_a_seek_then_interrupts_and_gives_the_sector(disk: Disk, size: int) -> None:
    disk.write(BASE + Register.CONTROL, 1)
    disk.command(Command.READ, 3)
    assert disk.status == Status.BUSY
    disk.advance(SEEK * 0.9)
    assert (disk.status, disk.pending, disk.level(GSI)) == (Status.BUSY, 0, False)
    disk.advance(SEEK * 0.2)
    assert (disk.status, disk.pending, disk.level(GSI)) == (Status.DATA, 1, True)
    assert disk.data(size, SECTOR - size) + disk.data(size, size) == CONTENT[3 * SECTOR : 4 * SECTOR]
    assert disk.status == 0
    assert disk.read(BASE + Register.DATA, 4) == 0xFFFF_FFFF
    assert disk.level(GSI)
    disk.write(BASE + Register.INTERRUPT, 1)
    assert (disk.pending, disk.level(GSI)) == (0, False)


@pytest.mark.parametrize("size", SIZES)
def test_a_write_takes_data_without_an_interrupt_and_interrupts_when_it_is_in_the_file(disk: Disk, size: int) -> None:
    disk.write(BASE + Register.CONTROL, 1)
    sector = bytes(range(256)) * 2
    disk.command(Command.WRITE, 2)
    assert (disk.status, disk.pending) == (Status.DATA, 0)
    disk.fill(sector[:-size], size)
    assert disk.status == Status.DATA
    disk.fill(sector[-size:], size)
    assert (disk.status, disk.pending) == (Status.BUSY, 0)
    assert disk.path.read_bytes() == CONTENT
    disk.advance(SEEK)
    assert (disk.status, disk.pending, disk.level(GSI)) == (0, 1, True)
    assert disk.path.read_bytes() == CONTENT[: 2 * SECTOR] + sector + CONTENT[3 * SECTOR :]


def test_a_flush_syncs_the_file(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    disk.command(Command.FLUSH, 0xFFFF_FFFF)  # the sector is ignored
    assert disk.status == Status.BUSY
    disk.advance(SEEK)
    assert (disk.status, disk.error, disk.pending, len(synced)) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("command", "sector", "read_only", "error"),
    [
        (Command.READ, SECTORS, False, Error.NO_SUCH_SECTOR),
        (Command.WRITE, 0xFFFF_FFFF, False, Error.NO_SUCH_SECTOR),
        (Command.WRITE, 0, True, Error.READ_ONLY),
        (0, 0, False, Error.NO_SUCH_COMMAND),
        (0xFF, 0, False, Error.NO_SUCH_COMMAND),
    ],
)
def test_a_refused_command_fails_at_once(image: Path, command: int, sector: int, read_only: bool, error: Error) -> None:
    disk = Disk(image, read_only=read_only)
    disk.write(BASE + Register.CONTROL, 1)
    disk.command(command, sector)
    assert (disk.status, disk.error, disk.pending, disk.level(GSI)) == (Status.ERROR, error, 1, True)
    disk.command(Command.READ, 1)
    assert (disk.status, disk.error) == (Status.BUSY, Error.NONE)


@pytest.mark.parametrize("command", [Command.READ, Command.WRITE, Command.FLUSH])
def test_an_error_of_the_file_is_reported_and_the_device_goes_on(
    disk: Disk, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError

    with monkeypatch.context() as patch:
        for name in ("pread", "pwrite", "fsync"):
            patch.setattr(os, name, fail)
        disk.command(command, 1)
        if command == Command.WRITE:
            disk.fill(bytes(SECTOR), 4)
        disk.advance(SEEK)
    assert (disk.status, disk.error, disk.pending) == (Status.ERROR, Error.FILE_FAILED, 1)
    disk.command(Command.READ, 1)
    disk.advance(SEEK)
    assert disk.data(4) == CONTENT[SECTOR : 2 * SECTOR]


def test_reading_a_truncated_file_is_an_error(disk: Disk) -> None:
    os.truncate(disk.path, SECTOR + 10)
    disk.command(Command.READ, 1)
    disk.advance(SEEK)
    assert (disk.status, disk.error) == (Status.ERROR, Error.FILE_FAILED)


def test_a_command_while_busy_is_ignored(disk: Disk) -> None:
    disk.command(Command.READ, 1)
    disk.command(Command.WRITE, 2)
    disk.advance(SEEK)
    assert disk.data(4) == CONTENT[SECTOR : 2 * SECTOR]


def test_a_command_in_the_middle_of_a_transfer_replaces_it(disk: Disk) -> None:
    disk.command(Command.READ, 1)
    disk.advance(SEEK)
    disk.data(4, 100)
    disk.command(Command.READ, 2)
    assert disk.status == Status.BUSY
    disk.advance(SEEK)
    assert disk.data(4) == CONTENT[2 * SECTOR : 3 * SECTOR]


def test_a_reset_forgets_the_command_and_the_interrupt(disk: Disk) -> None:
    disk.write(BASE + Register.CONTROL, 1)
    disk.command(0)
    disk.command(Command.READ, 1)
    disk.write(BASE + Register.CONTROL, 3)
    assert disk.read(BASE + Register.CONTROL) == 1
    assert (disk.status, disk.error, disk.pending, disk.level(GSI)) == (0, 0, 0, False)
    assert disk.advance(1) == 0
    assert disk.pending == 0


def test_the_line_is_pending_and_enabled(disk: Disk) -> None:
    disk.command(0)
    levels = []
    for control in (0, 1, 0, 1):
        disk.write(BASE + Register.CONTROL, control)
        levels.append(disk.level(GSI))
    assert levels == [False, True, False, True]


def test_the_capacity_counts_the_files_whole_sectors(disk: Disk) -> None:
    assert disk.read(BASE + Register.CAPACITY, 4) == SECTORS
    assert [disk.read(BASE + Register.CAPACITY + byte) for byte in range(4)] == [SECTORS, 0, 0, 0]


def test_the_bytes_of_a_register_can_be_written_one_by_one(disk: Disk) -> None:
    for byte, value in enumerate((0x78, 0x56, 0x34, 0x12)):
        disk.write(BASE + byte, value)
    assert disk.read(BASE + Register.SECTOR, 4) == 0x12345678
    assert disk.read(BASE + 2, 2) == 0x1234


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(
        st.tuples(st.integers(0, SECTORS - 1), st.binary(min_size=SECTOR, max_size=SECTOR), st.sampled_from(SIZES)),
        max_size=6,
    )
)
def test_written_data_is_read_back(tmp_path: Path, writes: list[tuple[int, bytes, int]]) -> None:
    path = tmp_path / "written.img"
    path.write_bytes(bytes(SECTORS * SECTOR))
    disk = Disk(path, seek=0)
    expected = dict.fromkeys(range(SECTORS), bytes(SECTOR))
    for sector, data, size in writes:
        disk.command(Command.WRITE, sector)
        disk.fill(data, size)
        disk.advance()
        expected[sector] = data
    for sector, data in expected.items():
        disk.command(Command.READ, sector)
        disk.advance()
        assert disk.data(4) == data
    disk.block.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    accesses=st.lists(
        st.tuples(
            st.integers(0, 15),
            st.sampled_from((1, 2, 4, 8)),
            st.none() | st.sampled_from((0, 1, 2, 3, 7)) | st.integers(0),
        ),
        max_size=60,
    )
)
def test_no_access_raises_and_the_line_is_pending_and_enabled(
    image: Path, accesses: list[tuple[int, int, int | None]]
) -> None:
    disk = Disk(image)
    for offset, size, value in accesses:
        if value is None:
            disk.read(BASE + offset, size)
        else:
            disk.write(BASE + offset, value & (1 << 8 * size) - 1, size)
        disk.advance(SEEK / 3)
        assert disk.level(GSI) == bool(disk.pending and disk.read(BASE + Register.CONTROL) & 1)
        assert disk.status in (0, Status.BUSY, Status.DATA, Status.ERROR)
    disk.block.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_cant_be_opened_is_refused_with_what_to_do(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(NotFound, match=r"none can't be opened .*: check the path, or make the file with `truncate"):
        BlockDevice(tmp_path / "none")
    with pytest.raises(IrqchipError, match=r"can't be opened .*: give a file that this user may read and write, or"):
        BlockDevice(sys.executable)
    with pytest.raises(IrqchipError, match=r"can't be opened .*: give a file, or a block device"):
        BlockDevice(tmp_path, read_only=read_only)

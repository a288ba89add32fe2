"""The block device, section 5.2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irqchip_client import InvalidArgument, IrqchipError, NotFound
from irqchip_client.devices import VirtioBlock
from irqchip_client.devices.virtio.block import MOST_BYTES, MOST_SEGMENTS, Feature
from irqchip_client.devices.virtio.mmio import Feature as Common
from tests.devices.virtio.machine import DATA, FLUSH, GET_ID, IN, IOERR, OK, OUT, RINGS, UNSUPP, Machine

SECTORS = 64


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SECTORS * 512 + 100))  # an incomplete sector at the end
    return path


@pytest.fixture
def machine(disk: Path) -> Machine:
    machine = Machine(VirtioBlock(disk))
    machine.driver.start(at=RINGS)
    return machine


def test_the_configuration_says_what_the_disk_is(machine: Machine) -> None:
    driver = machine.driver
    assert driver.config(0, 8) == SECTORS
    assert driver.config(12, 4) == MOST_SEGMENTS
    assert driver.config(20, 4) == 512
    assert driver.config(0xF0, 4) == 0, "bytes without a field"
    assert driver.offered() & 0xFFFF == Feature.SIZE_MAX | Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH
    driver.write_config(0, 5, 4)
    assert driver.config(0, 8) == SECTORS


def test_sectors_are_read_and_written(machine: Machine, disk: Path) -> None:
    assert machine.ask(IN, 3, room=1024) == (OK, disk.read_bytes()[3 * 512 : 5 * 512])
    assert machine.ask(OUT, 7, b"x" * 1024) == (OK, b"")
    assert disk.read_bytes()[7 * 512 : 9 * 512] == b"x" * 1024
    assert machine.ask(IN, 7, room=1024) == (OK, b"x" * 1024)
    assert machine.ask(FLUSH) == (OK, b"")


def test_the_used_length_says_how_much_was_written(machine: Machine) -> None:
    for kind, data, room, written in ((IN, b"", 512, 513), (OUT, bytes(512), 0, 1), (GET_ID, b"", 20, 21)):
        machine.request(kind, 0, data, room)
        machine.driver.notify()
        taken = machine.queue.take()
        assert taken is not None
        assert taken[1] == written


def test_the_disk_has_a_name(disk: Path) -> None:
    machine = Machine(VirtioBlock(disk, identity="scratch"))
    machine.driver.start(at=RINGS)
    assert machine.ask(GET_ID, room=20) == (OK, b"scratch".ljust(20, b"\0"))
    assert machine.ask(GET_ID, room=4) == (OK, b"scra")


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 55, 512), ((1 << 64) - 1, 512), (0, 511), (0, 513)],
)
def test_what_is_no_whole_sector_of_the_disk_is_an_error(
    machine: Machine, disk: Path, kind: int, sector: int, length: int
) -> None:
    before = disk.read_bytes()
    data, room = (bytes(length), 0) if kind == OUT else (b"", length)
    assert machine.ask(kind, sector, data, room)[0] == IOERR
    assert disk.read_bytes() == before
    assert not machine.device.broken, "an error is an answer"


def test_a_request_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 1 << 40)
    machine = Machine(VirtioBlock(tmp_path / "large"))
    machine.driver.start(at=RINGS, size=256)
    parts = [(0x2_0000, 0x8_0000)] * (MOST_BYTES // 0x8_0000 + 1)
    machine.ram.write(DATA + 0x5_0000, bytes(16))
    machine.queue.add([(DATA + 0x5_0000, 16)], [*parts, (DATA + 0x5_0010, 1)])
    machine.driver.notify()
    assert machine.ram.read(DATA + 0x5_0010, 1) == bytes([IOERR])


@pytest.mark.parametrize("kind", [2, 3, 10, 11, 13, 14, 0xFFFF_FFFF])
def test_unknown_requests_are_unsupported(machine: Machine, kind: int) -> None:
    assert machine.ask(kind, room=512)[0] == UNSUPP


def test_a_read_only_disk_is_not_written(disk: Path) -> None:
    machine = Machine(VirtioBlock(disk, read_only=True))
    machine.driver.start(at=RINGS)
    before = disk.read_bytes()
    assert machine.driver.offered() & Feature.RO
    assert machine.ask(OUT, 0, bytes(512))[0] == IOERR
    assert machine.ask(IN, 0, room=512) == (OK, before[:512])
    assert disk.read_bytes() == before


def test_a_file_that_was_cut_is_an_error(machine: Machine, disk: Path) -> None:
    os.truncate(disk, 512)
    assert machine.ask(IN, 1, room=512)[0] == IOERR
    assert machine.ask(IN, 0, room=1024)[0] == IOERR
    assert machine.ask(IN, 0, room=512)[0] == OK


def test_without_flush_a_write_is_on_the_disk_when_it_is_done(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    machine = Machine(VirtioBlock(disk))
    for features, expected in ((Common.VERSION_1 | Feature.FLUSH, 0), (Common.VERSION_1, 1)):
        synced.clear()
        machine.driver.start(at=RINGS, features=features)
        assert machine.ask(OUT, 0, bytes(512)) == (OK, b"")
        assert len(synced) == expected


def test_files_that_cannot_be_disks(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="truncate -s"):
        VirtioBlock(tmp_path / "missing")
    with pytest.raises(IrqchipError, match="give a file"):
        VirtioBlock(tmp_path)
    (tmp_path / "disk").write_bytes(bytes(512))
    with pytest.raises(InvalidArgument, match="20 characters"):
        VirtioBlock(tmp_path / "disk", identity="x" * 21)
    with pytest.raises(InvalidArgument, match="ASCII"):
        VirtioBlock(tmp_path / "disk", identity="é")

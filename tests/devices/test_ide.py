"""The IDE channel and its disks: ATA/ATAPI-6 (T13/1410D), whose sections the tests name."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from irqchip_client import InvalidArgument, NotFound
from irqchip_client.devices import Ide
from irqchip_client.devices.ata import MOST_AT_ONCE, Command, Error, Status
from irqchip_client.devices.image_file import SECTOR
from tests.devices.bench import Bench

BASE, CONTROL, GSI = 0x1F0, 0x3F6, 14
SEEK = 0.01
SECTORS = 3000
CONTENT = random.Random(0x1F0).randbytes(SECTORS * SECTOR + 100)  # the last, partial sector is out of reach
READY = Status.DRDY | Status.DSC
BSY, ASKS, FAILED = int(Status.BSY), int(READY | Status.DRQ), int(READY | Status.ERR)
LBA, SECOND = 0x40, 0x10
NIEN, SRST, HOB = 0x02, 0x04, 0x80


class Channel(Bench):
    """A host's driver, and the disks' files."""

    def __init__(self, first: Path, second: Path | None = None, *, read_only: bool = False) -> None:
        self.paths = (first, second or first)
        self.ide = Ide(first, second, read_only=read_only, seek=SEEK)
        super().__init__(self.ide)

    def put(self, count: int, address: int, device: int = LBA) -> None:
        """The registers of a command with 28-bit addresses."""
        for register, value in ((6, device | address >> 24), (2, count), (3, address), (4, address >> 8)):
            self.write(BASE + register, value & 0xFF)
        self.write(BASE + 5, address >> 16 & 0xFF)

    def put_extended(self, count: int, address: int, device: int = LBA) -> None:
        """6.20: the registers of a command with 48-bit addresses, each written twice."""
        self.write(BASE + 6, device)
        for first, second, register in (
            (count >> 8, count, 2),
            (address >> 24, address, 3),
            (address >> 32, address >> 8, 4),
            (address >> 40, address >> 16, 5),
        ):
            self.write(BASE + register, first & 0xFF)
            self.write(BASE + register, second & 0xFF)

    def command(self, command: int) -> None:
        self.write(BASE + 7, command)

    @property
    def status(self) -> int:
        """Alternate status, which leaves the interrupt."""
        return self.read(CONTROL)

    def end_interrupt(self) -> int:
        """Reads the status."""
        return self.read(BASE + 7)

    @property
    def error(self) -> int:
        return self.read(BASE + 1)

    @property
    def registers(self) -> tuple[int, ...]:
        """Sector count, LBA low, mid and high, and device."""
        return tuple(self.read(BASE + register) for register in range(2, 7))

    def data(self, count: int = SECTOR, size: int = 2) -> bytes:
        return self.read_data(BASE, count, size)

    def fill(self, data: bytes, size: int = 2) -> None:
        self.write_data(BASE, data, size)

    def words(self) -> tuple[int, ...]:
        """IDENTIFY DEVICE."""
        self.command(Command.IDENTIFY)
        self.advance(SEEK)
        return struct.unpack("<256H", self.data())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def channel(image: Path) -> Channel:
    return Channel(image)


@pytest.fixture
def pair(image: Path, tmp_path: Path) -> Channel:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(reversed(CONTENT[: 100 * SECTOR])))
    return Channel(image, other)


def sectors(first: int, count: int = 1) -> bytes:
    return CONTENT[first * SECTOR : (first + count) * SECTOR]


# PIO data-in: 9.5.


@pytest.mark.parametrize("size", [2, 4])
def test_a_read_is_busy_and_then_interrupts_for_each_sector(channel: Channel, size: int) -> None:
    channel.put(2, 5)
    channel.command(Command.READ_SECTORS)
    for sector in (5, 6):
        assert (channel.status, channel.level(GSI)) == (BSY, False)
        channel.advance(SEEK)
        assert (channel.status, channel.level(GSI)) == (ASKS, True)
        assert channel.end_interrupt() == ASKS
        assert not channel.level(GSI)
        assert channel.data(size=size) == sectors(sector)
    assert channel.status == READY
    channel.advance(1)
    assert not channel.level(GSI)  # no interrupt behind the last sector
    assert channel.read(BASE, size) == (1 << 8 * size) - 1


def test_accesses_to_the_data_register_do_not_delay_a_busy_disk(channel: Channel) -> None:
    channel.put(1, 5)
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK / 2)
    assert channel.read(BASE, 2) == 0xFFFF
    channel.write(BASE, 0, 2)
    channel.advance(SEEK / 2)
    assert (channel.status, channel.level(GSI)) == (ASKS, True)
    assert channel.data() == sectors(5)


def test_a_sector_count_of_0_is_256_sectors(channel: Channel) -> None:
    channel.put(0, 100)
    channel.command(Command.READ_SECTORS)
    for sector in range(100, 356):
        channel.advance(SEEK)
        assert channel.data(size=4) == sectors(sector)
    assert channel.status == READY


def test_a_read_by_cylinder_head_and_sector(channel: Channel) -> None:
    channel.put(1, 1 << 8 | 7, device=2)  # cylinder 1, head 2, sector 7
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK)
    assert channel.data() == sectors((16 + 2) * 63 + 6)


def test_another_translation(channel: Channel) -> None:
    channel.put(20, 0, device=3)
    channel.command(Command.INITIALIZE_PARAMETERS)
    assert channel.end_interrupt() == READY
    channel.put(1, 1 << 8 | 20, device=3)
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK)
    assert channel.data() == sectors((4 + 3) * 20 + 19)
    words = channel.words()
    assert (words[54], words[55], words[56]) == (SECTORS // 80, 4, 20)
    channel.put(1, 1 << 8 | 21, device=0)
    channel.command(Command.READ_SECTORS)
    assert (channel.status, channel.error) == (FAILED, Error.IDNF)


def test_a_read_by_48_bits(channel: Channel) -> None:
    channel.put_extended(0x101, 0x302)
    channel.command(Command.READ_SECTORS_EXT)
    for sector in range(0x302, 0x302 + 0x101):
        channel.advance(SEEK)
        assert channel.data(size=4) == sectors(sector)
    assert channel.status == READY


def test_hob_reads_the_previous_contents_and_any_write_clears_it(channel: Channel) -> None:
    channel.put_extended(0x1234, 0x060504030201)
    assert channel.registers == (0x34, 1, 2, 3, 0xA0 | LBA)
    channel.write(CONTROL, HOB)
    assert channel.registers == (0x12, 4, 5, 6, 0xA0 | LBA)
    channel.write(BASE + 2, 0)
    assert channel.registers == (0, 1, 2, 3, 0xA0 | LBA)


def test_read_multiple_interrupts_for_each_block(channel: Channel) -> None:
    channel.put(4, 0)
    channel.command(Command.SET_MULTIPLE)
    assert channel.end_interrupt() == READY
    channel.put(10, 50)
    channel.command(Command.READ_MULTIPLE)
    for first, count in ((50, 4), (54, 4), (58, 2)):
        channel.advance(SEEK)
        assert channel.level(GSI)
        channel.end_interrupt()
        assert channel.data(count * SECTOR, 4) == sectors(first, count)
    assert channel.status == READY


# PIO data-out: 9.6.


@pytest.mark.parametrize("size", [2, 4])
def test_a_write_takes_the_first_sector_without_an_interrupt(channel: Channel, size: int) -> None:
    new = random.Random(1).randbytes(2 * SECTOR)
    channel.put(2, 9)
    channel.command(Command.WRITE_SECTORS)
    assert (channel.status, channel.level(GSI)) == (ASKS, False)
    channel.fill(new[:SECTOR], size)
    assert (channel.status, channel.level(GSI)) == (BSY, False)
    assert channel.paths[0].read_bytes() == CONTENT
    channel.advance(SEEK)
    assert (channel.status, channel.level(GSI)) == (ASKS, True)
    channel.end_interrupt()
    channel.fill(new[SECTOR:], size)
    channel.advance(SEEK)
    assert (channel.status, channel.level(GSI)) == (READY, True)
    assert channel.end_interrupt() == READY
    assert not channel.level(GSI)
    assert channel.paths[0].read_bytes() == CONTENT[: 9 * SECTOR] + new + CONTENT[11 * SECTOR :]


def test_write_multiple_by_48_bits(channel: Channel) -> None:
    new = random.Random(2).randbytes(20 * SECTOR)
    channel.put_extended(20, 2000)
    channel.command(Command.WRITE_MULTIPLE_EXT)
    for first, count in ((0, 16), (16, 4)):
        assert channel.status == ASKS
        channel.fill(new[first * SECTOR : (first + count) * SECTOR], 4)
        channel.advance(SEEK)
        assert channel.level(GSI)
        channel.end_interrupt()
    assert channel.status == READY
    assert channel.paths[0].read_bytes() == CONTENT[: 2000 * SECTOR] + new + CONTENT[2020 * SECTOR :]


@pytest.mark.parametrize("command", [Command.FLUSH_CACHE, Command.FLUSH_CACHE_EXT])
def test_a_flush_syncs_the_file(channel: Channel, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    channel.command(command)
    assert (channel.status, synced) == (BSY, [])
    channel.advance(SEEK)
    assert (channel.status, channel.level(GSI), len(synced)) == (READY, True, 1)


# Interrupts and selection: 5.2.9, 7.8, 9.16.


def test_nien_holds_the_line_low_and_the_interrupt_waits(channel: Channel) -> None:
    channel.write(CONTROL, NIEN)
    channel.put(1, 0)
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK)
    assert (channel.status, channel.level(GSI)) == (ASKS, False)
    channel.write(CONTROL, 0)
    assert channel.level(GSI)


def test_a_command_ends_the_interrupt_of_the_one_before(channel: Channel) -> None:
    channel.put(1, 0)
    channel.command(Command.SEEK)
    assert channel.level(GSI)
    channel.command(Command.READ_SECTORS)
    assert not channel.level(GSI)


def test_only_the_selected_disk_drives_the_line(pair: Channel) -> None:
    pair.put(1, 0)
    pair.command(Command.SEEK)
    assert pair.level(GSI)
    pair.write(BASE + 6, SECOND)
    assert (pair.status, pair.level(GSI)) == (READY, False)
    pair.write(BASE + 6, 0)
    assert pair.level(GSI)


def test_each_disk_has_its_file(pair: Channel) -> None:
    for device, content in ((LBA, CONTENT), (LBA | SECOND, bytes(reversed(CONTENT[: 100 * SECTOR])))):
        pair.put(1, 3, device)
        pair.command(Command.READ_SECTORS)
        pair.advance(SEEK)
        assert pair.data() == content[3 * SECTOR : 4 * SECTOR]


def test_both_disks_take_the_registers(pair: Channel) -> None:
    pair.put(7, 0x030201, device=0)
    pair.write(BASE + 6, SECOND)
    assert pair.registers == (7, 1, 2, 3, 0xA0 | SECOND)


def test_disk_0_answers_for_a_disk_1_that_is_not_there(channel: Channel) -> None:
    channel.put(5, 0, device=SECOND)
    assert channel.registers == (5, 0, 0, 0, 0xA0 | SECOND)
    assert (channel.status, channel.read(BASE + 7)) == (0, 0)
    channel.command(Command.IDENTIFY)
    channel.advance(1)
    assert (channel.status, channel.level(GSI), channel.read(BASE, 2)) == (0, False, 0xFFFF)
    channel.write(BASE + 6, 0)
    assert channel.status == READY


def test_registers_are_not_written_while_the_disk_is_busy(channel: Channel) -> None:
    channel.put(1, 4)
    channel.command(Command.READ_SECTORS)
    channel.put(9, 9)
    channel.command(Command.WRITE_SECTORS)
    channel.advance(SEEK)
    assert channel.data() == sectors(4)


# Resets and diagnostics: 9.2, 8.9.

SIGNATURE = (1, 1, 0, 0, 0xA0)


def test_a_software_reset_is_busy_while_it_lasts_and_leaves_the_signature(pair: Channel) -> None:
    pair.put(3, 7, LBA | SECOND)
    pair.command(Command.WRITE_SECTORS)
    pair.fill(bytes(SECTOR))
    pair.write(CONTROL, SRST)
    assert pair.status == BSY
    pair.command(Command.IDENTIFY)
    pair.write(CONTROL, 0)
    pair.advance(1)
    assert (pair.status, pair.error, pair.registers, pair.level(GSI)) == (READY, 1, SIGNATURE, False)
    assert pair.paths[1].read_bytes() == bytes(reversed(CONTENT[: 100 * SECTOR]))


def test_a_software_reset_keeps_settings_unless_the_host_wants_the_defaults(channel: Channel) -> None:
    channel.put(2, 0)
    channel.command(Command.SET_MULTIPLE)
    channel.write(CONTROL, SRST)
    channel.write(CONTROL, 0)
    assert channel.words()[59] == 0x102
    channel.write(BASE + 1, 0xCC)
    channel.command(Command.SET_FEATURES)
    assert channel.end_interrupt() == READY
    channel.write(CONTROL, SRST)
    channel.write(CONTROL, 0)
    assert channel.words()[59] == 0x100 | MOST_AT_ONCE


def test_the_diagnostic_is_executed_by_both_disks_and_disk_0_interrupts(pair: Channel) -> None:
    pair.put(3, 7, LBA | SECOND)
    pair.command(Command.DIAGNOSTIC)
    assert (pair.status, pair.error, pair.registers, pair.level(GSI)) == (READY, 1, SIGNATURE, True)
    pair.end_interrupt()
    pair.write(BASE + 6, SECOND)
    assert (pair.status, pair.error, pair.registers[:4]) == (READY, 1, SIGNATURE[:4])


def test_the_vms_reset_forgets_all(pair: Channel) -> None:
    pair.put(2, 0)
    pair.command(Command.SET_MULTIPLE)
    pair.write(CONTROL, NIEN)
    pair.ide.reset()
    assert (pair.status, pair.registers, pair.level(GSI)) == (READY, SIGNATURE, False)
    assert pair.words()[59] == 0x100 | MOST_AT_ONCE


# IDENTIFY DEVICE, SET FEATURES and the rest: chapter 8.


def test_identify_describes_the_disk(pair: Channel) -> None:
    words = pair.words()
    assert words[0] == 0x40
    assert (words[1], words[3], words[6]) == (SECTORS // 1008, 16, 63)
    assert words[60] | words[61] << 16 == SECTORS
    assert words[100] | words[101] << 16 | words[102] << 32 == SECTORS
    assert words[47] == 0x8010
    assert (words[49] & 0x300, words[83] & 0xC400) == (0x200, 0x4400)  # LBA and no DMA; 48-bit addresses
    assert struct.pack(">20H", *words[27:47]).decode().rstrip() == "irqchipd ATA disk"
    assert sum(struct.pack("<256H", *words)) & 0xFF == 0
    pair.write(BASE + 6, SECOND)
    other = pair.words()
    assert other[60] == 100
    assert other[10:20] != words[10:20]
    assert other[57] | other[58] << 16 <= 100


@pytest.mark.parametrize(
    ("features", "count", "error"),
    [
        *((0x02, 0, 0), (0xAA, 0, 0), (0x03, 0, 0), (0x03, 0x0C, 0), (0x03, 0x0D, Error.ABRT)),
        *((0x03, 0x20, Error.ABRT), (0x03, 0x42, Error.ABRT), (0x05, 0, Error.ABRT), (0x99, 0, Error.ABRT)),
    ],
)
def test_set_features_knows_pio_modes_and_caches(channel: Channel, features: int, count: int, error: int) -> None:
    channel.write(BASE + 1, features)
    channel.write(BASE + 2, count)
    channel.command(Command.SET_FEATURES)
    assert channel.level(GSI)
    assert (channel.end_interrupt(), channel.error) == (FAILED if error else READY, error)


@pytest.mark.parametrize("command", [0x00, 0x08, 0x25, 0x35, 0xA0, 0xA1, 0xC8, 0xCA, 0xB0, 0xFF])
def test_a_command_that_the_disk_lacks_is_aborted(channel: Channel, command: int) -> None:
    channel.command(command)
    assert (channel.status, channel.error, channel.level(GSI)) == (FAILED, Error.ABRT, True)
    channel.put(1, 1)
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK)
    assert channel.data() == sectors(1)


@pytest.mark.parametrize("count", [3, 32, 255])
def test_set_multiple_takes_powers_of_two_up_to_16(channel: Channel, count: int) -> None:
    channel.put(count, 0)
    channel.command(Command.SET_MULTIPLE)
    assert (channel.status, channel.error) == (FAILED, Error.ABRT)


def test_multiple_mode_can_be_disabled(channel: Channel) -> None:
    channel.put(0, 0)
    channel.command(Command.SET_MULTIPLE)
    channel.put(1, 0)
    channel.command(Command.READ_MULTIPLE)
    assert (channel.status, channel.error) == (FAILED, Error.ABRT)


def test_the_last_address(channel: Channel) -> None:
    channel.write(BASE + 6, LBA)
    channel.command(Command.READ_NATIVE_MAX)
    assert channel.registers[1:4] == ((SECTORS - 1) & 0xFF, (SECTORS - 1) >> 8, 0)
    channel.command(Command.READ_NATIVE_MAX_EXT)
    assert channel.registers[1:4] == ((SECTORS - 1) & 0xFF, (SECTORS - 1) >> 8, 0)


def test_the_disk_is_always_awake(channel: Channel) -> None:
    channel.command(Command.STANDBY_IMMEDIATE)
    channel.command(Command.CHECK_POWER_MODE)
    assert (channel.status, channel.registers[0]) == (READY, 0xFF)


# Errors: 9.5, 9.6.


@pytest.mark.parametrize("command", [Command.READ_SECTORS, Command.WRITE_SECTORS, Command.VERIFY_SECTORS])
def test_a_sector_that_is_not_there_is_reported_with_its_address(channel: Channel, command: Command) -> None:
    channel.put(3, SECTORS - 2)
    channel.command(command)
    assert (channel.status, channel.error, channel.level(GSI)) == (FAILED, Error.IDNF, True)
    assert channel.registers[1:4] == (SECTORS & 0xFF, SECTORS >> 8, 0)


def test_sectors_are_verified_without_data(channel: Channel) -> None:
    channel.put(3, SECTORS - 3)
    channel.command(Command.VERIFY_SECTORS)
    assert (channel.status, channel.level(GSI)) == (READY, True)


def test_a_disk_that_is_read_only_aborts_writes(image: Path) -> None:
    channel = Channel(image, read_only=True)
    channel.put(1, 0)
    channel.command(Command.WRITE_SECTORS)
    assert (channel.status, channel.error) == (FAILED, Error.ABRT)


def test_errors_of_the_file_are_the_disks(channel: Channel) -> None:
    os.truncate(channel.paths[0], 100)
    channel.put(1, 2)
    channel.command(Command.READ_SECTORS)
    channel.advance(SEEK)
    assert (channel.status, channel.error, channel.registers[1], channel.level(GSI)) == (FAILED, Error.UNC, 2, True)


def test_a_write_that_fails_is_a_device_fault(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 100)  # the host's disk is full
    channel.put(1, 2)
    channel.command(Command.WRITE_SECTORS)
    channel.fill(bytes(SECTOR))
    channel.advance(SEEK)
    assert (channel.status, channel.level(GSI)) == (READY | Status.DF, True)


def test_a_file_without_a_sector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.img"
    path.write_bytes(bytes(SECTOR - 1))
    with pytest.raises(InvalidArgument, match="no sector"):
        Ide(path)
    with pytest.raises(NotFound):
        Ide(tmp_path / "missing.img")


def test_the_files_are_closed_where_the_second_cannot_be_opened(image: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotFound):
        Ide(image, tmp_path / "missing.img")
    assert len(os.listdir("/proc/self/fd")) == before

"""The guests in examples/guest match their source."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from examples.guest.build import ARM64, GUESTS, HERE, X86, Guest, build, recorded_compiler

EM_AARCH64 = 183


@pytest.fixture(params=GUESTS, ids=lambda guest: guest.architecture)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    """A guest, if the installed compiler is the one that made its binary."""
    guest: Guest = request.param
    for tool in (guest.compiler, "ld", guest.objcopy):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    probe = tmp_path / "probe.o"
    command = [guest.compiler, *guest.flags, "-c", "-x", "c", "/dev/null", "-o", str(probe)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{guest.compiler} makes no code for this guest")
    # An object's .comment begins with a NUL, which the linker removes.
    made_by, installed = (recorded_compiler(guest, path).strip(b"\0").decode() for path in (guest.binary, probe))
    if made_by != installed:
        pytest.skip(f"{guest.file} was made by {made_by}, and here is {installed}")
    return guest


def test_the_source_makes_the_binary(guest: Guest, tmp_path: Path) -> None:
    build(guest, tmp_path / guest.file)
    assert (tmp_path / guest.file).read_bytes() == guest.binary.read_bytes(), "run: python -m examples.guest.build"


def test_the_binary_does_not_depend_on_where_its_source_is(guest: Guest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "somewhere" / "else"
    shutil.copytree(HERE, elsewhere)
    build(guest, tmp_path / guest.file, elsewhere)
    assert (tmp_path / guest.file).read_bytes() == guest.binary.read_bytes()


def test_the_binary_is_a_multiboot_kernel_for_32_bit_x86() -> None:
    image = X86.binary.read_bytes()
    assert image[:7] == b"\x7fELF\x01\x01\x01"
    assert struct.unpack_from("<HH", image, 16) == (2, 3)  # ET_EXEC, EM_386
    header = next(at for at in range(0, 8192, 4) if image.startswith(struct.pack("<I", 0x1BADB002), at))
    assert sum(struct.unpack_from("<III", image, header)) & 0xFFFF_FFFF == 0


def test_the_binary_is_an_elf_file_for_arm64() -> None:
    image = ARM64.binary.read_bytes()
    assert image[:7] == b"\x7fELF\x02\x01\x01"
    assert struct.unpack_from("<HH", image, 16) == (2, EM_AARCH64)

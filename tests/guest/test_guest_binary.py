"""examples/guest/guest.elf matches its source."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from examples.guest.build import BINARY, HERE, build, compiler, recorded_compiler

PROBE = ["-m32", "-c", "-x", "c", "/dev/null", "-o"]


@pytest.fixture(scope="module")
def same_compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip unless the installed compiler is the one that made the binary."""
    for tool in (compiler(), "ld", "objcopy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    probe = tmp_path_factory.mktemp("probe") / "probe.o"
    if subprocess.run([compiler(), *PROBE, str(probe)], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler()} makes no 32-bit x86 code")
    # An object's .comment begins with a NUL, which the linker removes.
    made_by, installed = (recorded_compiler(path).strip(b"\0").decode() for path in (BINARY, probe))
    if made_by != installed:
        pytest.skip(f"guest.elf was made by {made_by}, and here is {installed}")


@pytest.mark.usefixtures("same_compiler")
def test_the_source_makes_the_binary(tmp_path: Path) -> None:
    build(tmp_path / "guest.elf")
    assert (tmp_path / "guest.elf").read_bytes() == BINARY.read_bytes(), "run: python -m examples.guest.build"


@pytest.mark.usefixtures("same_compiler")
def test_the_binary_does_not_depend_on_where_its_source_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "somewhere" / "else"
    shutil.copytree(HERE, elsewhere)
    build(tmp_path / "guest.elf", elsewhere)
    assert (tmp_path / "guest.elf").read_bytes() == BINARY.read_bytes()


def test_the_binary_is_a_multiboot_kernel_for_32_bit_x86() -> None:
    image = BINARY.read_bytes()
    assert image[:7] == b"\x7fELF\x01\x01\x01"
    assert struct.unpack_from("<HH", image, 16) == (2, 3)  # ET_EXEC, EM_386
    header = next(at for at in range(0, 8192, 4) if image.startswith(struct.pack("<I", 0x1BADB002), at))
    assert sum(struct.unpack_from("<III", image, header)) & 0xFFFF_FFFF == 0

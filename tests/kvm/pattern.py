"""The disk of the kernel processes.c: each sector's words tell its number."""

from __future__ import annotations

import struct
from pathlib import Path

SECTORS, WORDS, MASK = 16, 128, 0xFFFF_FFFF
LAST_READ, WRITTEN = 10, 2  # the sectors that the kernel reads last, and writes: it inverts the words


def _words(sector: int) -> list[int]:
    return [sector * 0x9E37_79B1 + at * 0x85EB_CA6B & MASK for at in range(WORDS)]


def _sector(words: list[int]) -> bytes:
    return struct.pack(f"<{WORDS}I", *words)


def make_disk(path: Path) -> None:
    """Makes the image."""
    path.write_bytes(b"".join(_sector(_words(sector)) for sector in range(SECTORS)))


def was_written(path: Path) -> bool:
    """Whether the kernel has written what it writes, and nothing else."""
    expected = [_words(sector) for sector in range(SECTORS)]
    expected[WRITTEN] = [~word & MASK for word in expected[LAST_READ]]
    return path.read_bytes() == b"".join(map(_sector, expected))

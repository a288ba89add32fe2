"""A PC's memory map."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import InvalidArgument
from irqchip_client.vmm.pc.memory_map import MEMORY_LIMIT, Kind, memory_map

MIB = 1 << 20


def test_base_memory_ends_below_the_extended_bios_data_area() -> None:
    assert [tuple(each) for each in memory_map(64 * MIB)] == [
        (0, 0x9FC00, Kind.RAM),
        (0x9FC00, 0x400, Kind.RESERVED),
        (0xE0000, 0x20000, Kind.RESERVED),
        (MIB, 63 * MIB, Kind.RAM),
        (0xFEC00000, 0x1000, Kind.RESERVED),
        (0xFEE00000, 0x1000, Kind.RESERVED),
    ]


@given(st.integers(1, MEMORY_LIMIT >> 12))
def test_ranges_ascend_without_overlap_and_ram_is_where_there_is_memory(pages: int) -> None:
    ranges = memory_map(pages << 12)
    assert all(first.end <= second.start for first, second in pairwise(ranges))
    assert all(each.end <= pages << 12 for each in ranges if each.kind is Kind.RAM)


def test_more_ram_than_there_is_room_for_below_the_chips_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most 3072 MiB of RAM, not 3073"):
        memory_map(3073 * MIB)

"""Linear addresses as in the SDM, volume 3, chapter 4."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn.x86.exceptions import Fault, Vector
from irqchip_client.unicorn.x86.paging import ACCESSED, CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, DIRTY, Paging


class Tables(dict[int, int]):
    """Page-table entries by address; all others are not present."""

    def read_entry(self, address: int, size: int) -> int:  # noqa: ARG002
        return self.get(address, 0)

    def write_entry(self, address: int, value: int, size: int) -> None:  # noqa: ARG002
        self[address] = value


def fault(paging: Paging, tables: Tables, linear: int, write: bool) -> tuple[int, int, int | None]:
    with pytest.raises(Fault) as caught:
        paging.translate(tables, linear, write)
    return caught.value.vector, caught.value.error_code, caught.value.address


def test_without_paging_they_are_physical() -> None:
    assert Paging(1, 0, 0, False).translate(Tables(), 0x1_2345_6789, True) == 0x2345_6789


class Test32Bit:
    PAGING = Paging(CR0_PG | CR0_WP, 0x1000, CR4_PSE, False)

    def test_two_levels(self) -> None:
        tables = Tables({0x1000 + 4: 0x2003, 0x2000 + 8: 0x9000 | 3})
        assert self.PAGING.translate(tables, 0x40_2ABC, True) == 0x9ABC
        assert tables == {0x1004: 0x2003 | ACCESSED, 0x2008: 0x9003 | ACCESSED | DIRTY}

    def test_4_mib_pages_with_36_bits(self) -> None:
        tables = Tables({0x1004: 0xC0_0000 | 1 << 13 | 0x83})
        assert self.PAGING.translate(tables, 0x7F_FFFF, False) == 0x1_00FF_FFFF
        assert tables[0x1004] & (ACCESSED | DIRTY) == ACCESSED

    def test_without_pse_there_are_no_4_mib_pages(self) -> None:
        tables = Tables({0x1004: 0x2083, 0x2000: 0x9003})
        assert Paging(CR0_PG, 0x1000, 0, False).translate(tables, 0x40_0000, False) == 0x9000

    def test_faults_say_whether_the_page_was_present_and_written(self) -> None:
        tables = Tables({0x1004: 0x2003, 0x2000: 0x9001})
        assert fault(self.PAGING, tables, 0x40_1234, False) == (Vector.PF, 0, 0x40_1234)
        assert fault(self.PAGING, tables, 0x40_1234, True) == (Vector.PF, 2, 0x40_1234)
        assert fault(self.PAGING, tables, 0x40_0000, True) == (Vector.PF, 3, 0x40_0000)
        assert fault(self.PAGING, tables, 0, False) == (Vector.PF, 0, 0)

    def test_ring_0_writes_everywhere_without_wp(self) -> None:
        tables = Tables({0x1004: 0x2001, 0x2000: 0x9001})
        assert Paging(CR0_PG, 0x1000, 0, False).translate(tables, 0x40_0000, True) == 0x9000


def test_pae_has_three_levels() -> None:
    paging = Paging(CR0_PG, 0x1020, CR4_PAE, False)
    tables = Tables({0x1020 + 8: 0x2001, 0x2000 + 8: 0x3003, 0x3000 + 16: 0x12_3456_7000 | 3, 0x2010: 0x40_0083})
    assert paging.translate(tables, 0x4020_2ABC, False) == 0x12_3456_7ABC
    assert paging.translate(tables, 0x4041_2345, False) == 0x41_2345
    assert fault(paging, tables, 0, False) == (Vector.PF, 0, 0)


class Test4Level:
    PAGING = Paging(CR0_PG | CR0_WP, 0x1000, CR4_PAE, True)

    def test_four_levels_and_large_pages(self) -> None:
        tables = Tables(
            {
                0x1000 + 511 * 8: 0x2003,
                0x2000 + 510 * 8: 0x3003,
                0x2000 + 511 * 8: 0x4000_0083,
                0x3000: 0x4003,
                0x3008: 0x60_0083,
                0x4008: 0x8000_0000_0000_9003,
            }
        )
        assert self.PAGING.translate(tables, 0xFFFF_FFFF_8000_1ABC, True) == 0x9ABC
        assert self.PAGING.translate(tables, 0xFFFF_FFFF_8020_1ABC, True) == 0x60_1ABC
        assert self.PAGING.translate(tables, 0xFFFF_FFFF_FFFF_FFFF, True) == 0x7FFF_FFFF

    def test_an_address_that_is_not_canonical_is_a_general_protection_fault(self) -> None:
        assert fault(self.PAGING, Tables(), 0x8000_0000_0000, False) == (Vector.GP, 0, None)

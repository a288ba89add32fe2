"""What CPUID says to a guest's vCPUs: no KVM is needed."""

from __future__ import annotations

import pytest

from irqchip_client.kvm.cpuid import Leaf, Package, vcpu_leaves

INDEXED = 1
CLOCK_FEATURES = 0x0100_000B
# As KVM gives them: with the host's identity in some, and what needs an APIC of KVM's.
AMD = [
    (0, 0, 0, 0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65),
    (1, 0, 0, 0x00B0_0F21, 0x0102_0800, 0x0120_2000, 0x078B_FBFF),
    (0xA, 0, 0, 0x0830_0402, 0, 0, 0),
    (0xB, 0, INDEXED, 0, 0, 0, 1),
    (0xD, 0, INDEXED, 7, 0x980, 0x980, 0),
    (0x8000_0001, 0, 0, 0, 0, 0x0040_0391, 0),
    (0x8000_0008, 0, 0, 0x3030, 0, 0x7001, 0),
    (0x8000_001D, 0, INDEXED, 0x02C0_4121, 0x3F, 0x3F, 0),
    (0x8000_001D, 3, INDEXED, 0x0000_4163, 0x3F, 0x3F, 0),
    (0x8000_001D, 4, INDEXED, 0, 0, 0, 0),
    (0x8000_001E, 0, 0, 1, 0x100, 0x200, 0),
    (0x8000_0026, 0, INDEXED, 1, 2, 0x100, 1),
    (0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
    (0x4000_0001, 0, 0, 0x0100_7EFB, 0, 0, 7),
]
INTEL = [
    (0, 0, 0, 0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    *AMD[1:3],
    (4, 0, INDEXED, 0x1C00_4121, 0x3F, 0x3F, 0),
    (4, 3, INDEXED, 0xFC1F_C163, 0x3F, 0x3F, 0),
    AMD[3],
    (0x15, 0, 0, 2, 216, 24_000_000, 0),
    (0x16, 0, 0, 2700, 3500, 100, 0),
    (0x1F, 0, INDEXED, 0, 0, 0, 1),
    *AMD[6:7],
]
PACKAGES = [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 5), tuple(range(64))]


def cpuid(supported: list[Leaf], vcpu: int, package: Package) -> dict[tuple[int, int], tuple[int, ...]]:
    """EAX to EDX by function and index."""
    leaves = list(vcpu_leaves(supported, vcpu, package))
    found: dict[tuple[int, int], tuple[int, ...]] = {leaf[:2]: leaf[3:] for leaf in leaves}
    assert len(found) == len(leaves)
    return found


@pytest.mark.parametrize("ids", PACKAGES, ids=str)
@pytest.mark.parametrize("supported", [AMD, INTEL], ids=["amd", "intel"])
def test_every_leaf_tells_of_one_package_with_a_core_for_each_vcpu(supported: list[Leaf], ids: tuple[int, ...]) -> None:
    bits = max(ids).bit_length()
    for vcpu in ids:
        leaves = cpuid(supported, vcpu, Package(ids))
        _, ebx, _, edx = leaves[1, 0]
        assert ebx >> 24 == vcpu
        assert ebx >> 16 & 0xFF == 1 << bits  # the IDs that a package has room for
        assert bool(edx & 1 << 28) is (len(ids) > 1)
        for function in {0xB, 0x1F} & {leaf[0] for leaf in supported}:
            threads, cores, end = (leaves[function, level] for level in range(3))
            assert threads == (0, 1, 0x100, vcpu)
            assert cores == (bits, len(ids), 0x201, vcpu)
            assert end == (0, 0, 2, vcpu)
        assert leaves[0x8000_0008, 0][2] & 0xF0FF == bits << 12 | len(ids) - 1


@pytest.mark.parametrize("ids", PACKAGES, ids=str)
def test_amds_leaves_agree(ids: tuple[int, ...]) -> None:
    leaves = cpuid(AMD, ids[-1], Package(ids))
    assert leaves[0x8000_001E, 0] == (ids[-1], ids[-1], 0, 0)
    assert bool(leaves[0x8000_0001, 0][2] & 2) is (len(ids) > 1)
    assert leaves[0x8000_001D, 0][0] == 0x0000_0121
    assert leaves[0x8000_001D, 3][0] == 0x163 | (1 << max(ids).bit_length()) - 1 << 14
    assert leaves[0x8000_001D, 4] == (0, 0, 0, 0)
    assert leaves[0x8000_0026, 0] == (0, 0, 0, 0)


def test_intels_caches_agree() -> None:
    leaves = cpuid(INTEL, 2, Package((0, 1, 2)))
    assert leaves[4, 0][0] == 3 << 26 | 0x121
    assert leaves[4, 3][0] == 3 << 26 | 3 << 14 | 0x163


def test_a_tsc_deadline_timer_is_shown_with_a_frequency_only() -> None:
    assert not cpuid(AMD, 0, Package((0,)))[1, 0][2] & 1 << 24
    assert (0x4000_0010, 0) not in cpuid(AMD, 0, Package((0,)))
    leaves = cpuid(AMD, 0, Package((0,), 2_596_098))
    assert leaves[1, 0][2] & 1 << 24
    assert leaves[0x4000_0000, 0] == (0x4000_0010, *AMD[-2][4:])
    assert leaves[0x4000_0010, 0] == (2_596_098, 1_000_000, 0, 0)


def test_the_paravirtual_features_are_those_that_need_no_apic_of_kvms() -> None:
    leaves = cpuid(AMD, 0, Package((0,)))
    assert leaves[0x4000_0001, 0] == (CLOCK_FEATURES, 0, 0, 0)
    assert leaves[1, 0][2] & 1 << 31  # else a guest does not look for them


def test_the_performance_counters_are_hidden() -> None:
    assert cpuid(AMD, 0, Package((0,)))[0xA, 0] == (0, 0, 0, 0)


@pytest.mark.parametrize("khz", [1_000_000, 999_999, 2_596_098, 3_999_999, 5_400_000, 100_000])
def test_intels_leaves_have_the_frequency_in_linuxs_arithmetic(khz: int) -> None:
    """tsc.c native_calibrate_tsc and cpu_khz_from_cpuid."""
    leaves = cpuid(INTEL, 0, Package((0,), khz))
    denominator, numerator, crystal_hz, _ = leaves[0x15, 0]
    crystal_khz = crystal_hz // 1000
    assert crystal_khz * numerator < 1 << 32
    assert abs(crystal_khz * numerator / denominator - khz) / khz < 2e-6
    assert crystal_hz == 1_000_000_000  # the APIC timer's
    assert leaves[0x16, 0][0] == round(khz / 1000)


def test_without_a_frequency_intels_leaves_are_kvms() -> None:
    assert cpuid(INTEL, 0, Package((0,)))[0x15, 0] == (2, 216, 24_000_000, 0)

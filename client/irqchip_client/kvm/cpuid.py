"""A guest's CPUID: the leaves that KVM supports, changed for irqchipd's local APICs.

Of KVM's own leaves (Documentation/virt/kvm/x86/cpuid.rst), a guest sees the features that need no APIC of KVM's: the
clock, and the feature that an access to port 80h is no delay. The clock gives Linux the TSC's frequency without a
measurement against the PIT. The name "KVMKVMKVM" also lets Linux use x2APICs without a unit that remaps interrupts
(arch/x86/kernel/apic/apic.c, try_to_enable_x2apic).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .ioctls import CPUID_ENTRY, CPUID_HEADER, MAX_CPUID_ENTRIES, Request, ioctl

INDEXED = 1 << 0  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
# Leaf 1.
TSC_DEADLINE_TIMER, X2APIC, HYPERVISOR = 1 << 24, 1 << 21, 1 << 31  # ECX
APIC, HTT = 1 << 9, 1 << 28  # EDX
TSC_INFORMATION, FREQUENCIES = 0x15, 0x16
CACHES, ARCHITECTURAL_PERFMON, EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2 = 4, 0xA, 0xB, 0x1F
AMD_FEATURES, ADDRESS_SIZES, AMD_CACHES, AMD_TOPOLOGY = 0x8000_0001, 0x8000_0008, 0x8000_001D, 0x8000_001E
AMD_EXTENDED_TOPOLOGY = 0x8000_0026
LEGACY_CORES = 1 << 1  # of AMD_FEATURES, ECX: several logical processors are cores
THREADS, CORES = 1, 2  # kinds of a topology's level
LAST_CACHE_OF_ONE_CORE = 2  # a level; the cores of the package share the caches of higher levels
# KVM's own leaves.
PARAVIRTUAL = range(0x4000_0000, 0x4001_0000)
SIGNATURE, FEATURES, TIMING = 0x4000_0000, 0x4000_0001, 0x4000_0010
CLOCK, NO_IO_DELAY, CLOCK_2, STABLE_CLOCK = 1 << 0, 1 << 1, 1 << 3, 1 << 24
NEEDS_NO_APIC = CLOCK | NO_IO_DELAY | CLOCK_2 | STABLE_CLOCK
# The local APIC timer's: 1 GHz. KVM: lapic.h APIC_BUS_FREQUENCY
BUS_KHZ = 1_000_000

Leaf = tuple[int, int, int, int, int, int, int]  # function, index, flags, EAX, EBX, ECX, EDX


@dataclass(frozen=True, slots=True)
class Package:
    """The processors: one package, in which each vCPU is a core with one thread.

    ids      all the APIC IDs
    tsc_khz  the frequency of the TSC, by which a TSC-deadline timer counts; 0: there is no such timer
    """

    ids: Sequence[int]
    tsc_khz: int = 0

    @property
    def cores(self) -> int:
        return len(self.ids)

    @property
    def id_bits(self) -> int:
        """The number of bits of an APIC ID that are the core's number."""
        return max(self.ids).bit_length()


def supported_cpuid(kvm: int) -> list[Leaf]:
    """KVM_GET_SUPPORTED_CPUID of /dev/kvm's descriptor."""
    cpuid = bytearray(CPUID_HEADER.size + MAX_CPUID_ENTRIES * CPUID_ENTRY.size)
    CPUID_HEADER.pack_into(cpuid, 0, MAX_CPUID_ENTRIES, 0)
    ioctl(kvm, Request.GET_SUPPORTED_CPUID, cpuid)
    count = CPUID_HEADER.unpack_from(cpuid)[0]
    return [CPUID_ENTRY.unpack_from(cpuid, CPUID_HEADER.size + n * CPUID_ENTRY.size) for n in range(count)]


def vcpu_cpuid(supported: Sequence[Leaf], vcpu: int, package: Package) -> bytearray:
    """struct kvm_cpuid2 of a vCPU. A bytearray, because fcntl.ioctl takes at most 1,024 bytes of a read-only buffer."""
    leaves = list(vcpu_leaves(supported, vcpu, package))
    return bytearray(CPUID_HEADER.pack(len(leaves), 0) + b"".join(CPUID_ENTRY.pack(*leaf) for leaf in leaves))


def vcpu_leaves(supported: Sequence[Leaf], vcpu: int, package: Package) -> Iterator[Leaf]:
    """The leaves of a vCPU."""
    intel = supported[0][4:] == _registers_of("GenuineIntel")
    for leaf in supported:
        function = leaf[0]
        if function in (EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2):
            if leaf[1] == 0:
                yield from _topology(function, vcpu, package)
        elif function in (TSC_INFORMATION, FREQUENCIES):
            yield _frequency(leaf, package.tsc_khz) if intel and package.tsc_khz else leaf
        elif function not in PARAVIRTUAL:
            yield _leaf(leaf, vcpu, package)
        elif function == SIGNATURE:
            yield function, 0, 0, TIMING if package.tsc_khz else FEATURES, *leaf[4:]
        elif function == FEATURES:
            yield function, 0, 0, leaf[3] & NEEDS_NO_APIC, 0, 0, 0
    if package.tsc_khz:  # Like VMware, QEMU and FreeBSD.
        yield TIMING, 0, 0, package.tsc_khz, BUS_KHZ, 0, 0


def physical_address_bits(supported: Sequence[Leaf]) -> int:
    """MAXPHYADDR. SDM volume 3, 4.1.4: 36 if CPUID does not report it."""
    return next((leaf[3] & 0xFF for leaf in supported if leaf[0] == ADDRESS_SIZES), 36)


def _registers_of(vendor: str) -> tuple[int, int, int]:
    """EBX, ECX and EDX of leaf 0."""
    name = vendor.encode()
    ebx, edx, ecx = (int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8))
    return ebx, ecx, edx


def _leaf(leaf: Leaf, vcpu: int, package: Package) -> Leaf:
    function, index, flags, eax, ebx, ecx, edx = leaf
    several = package.cores > 1
    match function:
        case 0:
            eax = max(eax, EXTENDED_TOPOLOGY)  # A processor with an x2APIC has this leaf.
        case 1:
            ebx = ebx & 0xFFFF | min(1 << package.id_bits, 0xFF) << 16 | (vcpu & 0xFF) << 24
            # Guests look for a hypervisor's leaves only if this bit is set. KVM leaves the bit to the VMM.
            ecx = (ecx | X2APIC | HYPERVISOR) & ~TSC_DEADLINE_TIMER | (TSC_DEADLINE_TIMER if package.tsc_khz else 0)
            edx = (edx | APIC) & ~HTT | (HTT if several else 0)
        case _ if function in (CACHES, AMD_CACHES) and eax & 0x1F:
            level = eax >> 5 & 7
            sharing = (1 << package.id_bits) - 1 if level > LAST_CACHE_OF_ONE_CORE else 0
            eax = eax & 0x3FFF | min(sharing, 0xFFF) << 14
            if function == CACHES:
                eax |= min((1 << package.id_bits) - 1, 0x3F) << 26
        case _ if function == ARCHITECTURAL_PERFMON:
            eax = ebx = ecx = edx = 0  # Counters whose overflow would interrupt through a local APIC of KVM's.
        case _ if function == AMD_FEATURES:
            ecx = ecx & ~LEGACY_CORES | (LEGACY_CORES if several else 0)
        case _ if function == ADDRESS_SIZES:
            ecx = ecx & ~0xF0FF | (package.cores - 1) & 0xFF | package.id_bits << 12
        case _ if function == AMD_TOPOLOGY:
            eax, ebx, ecx, edx = vcpu, vcpu & 0xFF, 0, 0
        case _ if function == AMD_EXTENDED_TOPOLOGY:
            eax = ebx = ecx = edx = 0  # EXTENDED_TOPOLOGY describes the package.
    return function, index, flags, eax, ebx, ecx, edx


def _topology(function: int, vcpu: int, package: Package) -> Iterator[Leaf]:
    """SDM volume 2, CPUID: a core has one thread, and the package has the cores."""
    yield function, 0, INDEXED, 0, 1, THREADS << 8, vcpu
    yield function, 1, INDEXED, package.id_bits, package.cores, CORES << 8 | 1, vcpu
    yield function, 2, INDEXED, 0, 0, 2, vcpu


def _frequency(leaf: Leaf, tsc_khz: int) -> Leaf:
    """Intel's leaves. The crystal has BUS_KHZ, because Linux takes its frequency for the local APIC timer's.

    Linux (tsc.c native_calibrate_tsc) multiplies kHz and the numerator in 32 bits.
    """
    function, index, flags, *_ = leaf
    if function == FREQUENCIES:
        mhz = round(tsc_khz / 1000)
        return function, index, flags, mhz, mhz, BUS_KHZ // 1000, 0
    ratio = Fraction(tsc_khz, BUS_KHZ).limit_denominator(max(((1 << 32) - 1) // tsc_khz - 1, 1))
    return function, index, flags, ratio.denominator, ratio.numerator, BUS_KHZ * 1000, 0

"""A guest's CPUID: all that KVM supports, changed as it must be for a local APIC that is irqchipd's."""

from __future__ import annotations

from .ioctls import CPUID_ENTRY, CPUID_HEADER, MAX_CPUID_ENTRIES, Request, ioctl

TSC_DEADLINE_TIMER = 1 << 24  # of leaf 1, ECX
APIC = 1 << 9  # of leaf 1, EDX
X2APIC = 1 << 21  # of leaf 1, ECX
ARCHITECTURAL_PERFMON, EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2, AMD_TOPOLOGY = 0xA, 0xB, 0x1F, 0x8000_001E
ADDRESS_SIZES = 0x8000_0008
PARAVIRTUAL = range(0x4000_0000, 0x4001_0000)

Leaf = tuple[int, int, int, int, int, int, int]  # function, index, flags, EAX, EBX, ECX, EDX


def supported_cpuid(kvm: int) -> list[Leaf]:
    """KVM_GET_SUPPORTED_CPUID of /dev/kvm's descriptor."""
    cpuid = bytearray(CPUID_HEADER.size + MAX_CPUID_ENTRIES * CPUID_ENTRY.size)
    CPUID_HEADER.pack_into(cpuid, 0, MAX_CPUID_ENTRIES, 0)
    ioctl(kvm, Request.GET_SUPPORTED_CPUID, cpuid)
    count = CPUID_HEADER.unpack_from(cpuid)[0]
    return [CPUID_ENTRY.unpack_from(cpuid, CPUID_HEADER.size + n * CPUID_ENTRY.size) for n in range(count)]


def vcpu_cpuid(supported: list[Leaf], vcpu: int) -> bytearray:
    """struct kvm_cpuid2 of a vCPU."""
    leaves = [_leaf(leaf, vcpu) for leaf in supported if leaf[0] not in PARAVIRTUAL]
    # A bytearray: fcntl.ioctl takes at most 1,024 bytes of what it may not write to.
    return bytearray(CPUID_HEADER.pack(len(leaves), 0) + b"".join(CPUID_ENTRY.pack(*leaf) for leaf in leaves))


def physical_address_bits(supported: list[Leaf]) -> int:
    """MAXPHYADDR. SDM volume 3, 4.1.4: 36 where CPUID does not say."""
    return next((leaf[3] & 0xFF for leaf in supported if leaf[0] == ADDRESS_SIZES), 36)


def _leaf(leaf: Leaf, vcpu: int) -> Leaf:
    function, index, flags, eax, ebx, ecx, edx = leaf
    match function:
        case 1:
            ebx = ebx & 0x00FF_FFFF | (vcpu & 0xFF) << 24
            # A deadline counts by the guest's TSC, which is KVM's; the timer runs on irqchipd's clock.
            ecx = (ecx | X2APIC) & ~TSC_DEADLINE_TIMER  # KvmVcpu sets the same at the daemon.
            edx |= APIC
        case _ if function == ARCHITECTURAL_PERFMON:
            eax = ebx = ecx = edx = 0  # Counters whose overflow would interrupt through a local APIC of KVM's.
        case _ if function in (EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2):
            edx = vcpu
        case _ if function == AMD_TOPOLOGY:
            eax = vcpu
    return function, index, flags, eax, ebx, ecx, edx

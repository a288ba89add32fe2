"""The results of calls: frozen dataclasses, made from the messages of irqchip.v1."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from google.protobuf.message import DecodeError

from irqchip.records import CLAIMED, UNANSWERED
from irqchip.v1 import irqchip_pb2 as pb

from ._errors import InvalidArgument

if TYPE_CHECKING:
    from ._state import Chip


class Architecture(IntEnum):
    """The kind of processor that a VM has, and so of interrupt controller."""

    X86 = 1  # PICs, an IOAPIC, local APICs and a PIT.
    ARM64 = 2  # A GICv2 or a GICv3, and generic timers.
    S390 = 3  # Floating interrupts and adapter interrupts.


class DeviceType(IntEnum):
    """KVM_DEV_TYPE_*: the kinds of devices that Vm.create_device() makes."""

    ARM_VGIC_V2 = 5
    FLIC = 6
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8  # It can be made, and translates nothing.


@dataclass(frozen=True, slots=True)
class GicHost:
    """The GIC of an arm64 VM's host, as far as a guest sees it. 0 stands for the usual value.

    version         the version that can be made, 2 or 3; 0: either of them
    list_registers  2 to 16; usually 4
    priority_bits   of a GICv3's CPU interface, 5 to 7; usually 5
    """

    version: int = 0
    list_registers: int = 0
    priority_bits: int = 0


USUAL_GIC: Final = GicHost()


class InterruptSource(IntEnum):
    """The chip that supplies a vCPU's interrupt."""

    ANY = 0  # In a request: the PIC if the local APIC accepts it (LINT0 unmasked, ExtINT), then the local APIC.
    PIC = 1
    LAPIC = 2
    IRQ = 3  # arm64: the vCPU's IRQ is asserted; the guest acknowledges it.
    FIQ = 4  # arm64: the vCPU's FIQ is asserted.
    FLIC = 5  # Only as the end of an s390 vCPU's halt: take_irq() returns the interrupt.


class SignalKind(IntEnum):
    """A kind of signal. A vCPU takes signals besides interrupts."""

    NMI = 1
    SMI = 2
    INIT = 3
    SIPI = 4
    UNHALT = 5  # Ends a halt: a remote read, by which KVM's guests wake a vCPU that has nothing to take.


class MpState(IntEnum):
    """A vCPU's run state: KVM's numbers."""

    RUNNABLE = 0  # The vCPU runs.
    UNINITIALIZED = 1  # It was never started, and waits for INIT. All vCPUs but the boot CPU begin so.
    INIT_RECEIVED = 2  # After INIT, it waits for SIPI.
    HALTED = 3  # It is in HLT.
    SIPI_RECEIVED = 4  # For set_mp_state(): as INIT_RECEIVED, with a SIPI to take.
    STOPPED = 5  # Not x86: it is stopped.
    CHECK_STOP = 6  # s390.
    OPERATING = 7  # s390: it runs, or waits.
    LOAD = 8  # s390.
    AP_RESET_HOLD = 9  # As HALTED: an encrypted guest's vCPU waits to be started.
    SUSPENDED = 10  # arm64: its guest has suspended it.

    @classmethod
    def from_proto(cls, state: int) -> Self:
        return cls(state - 1)  # 0 stands for an absent value in protobuf's enums.

    def to_proto(self) -> pb.MpState.ValueType:
        return pb.MpState.ValueType(self + 1)


class IrqchipMode(StrEnum):
    """The part of an irqchip that irqchipd holds. KVM has the same modes for the kernel."""

    NONE = "none"
    FULL = "full"  # PICs, IOAPIC and local APICs.
    SPLIT = "split"  # Local APICs; PICs and IOAPIC are the VMM's.


_MODES = {
    pb.IRQCHIP_MODE_NONE: IrqchipMode.NONE,
    pb.IRQCHIP_MODE_FULL: IrqchipMode.FULL,
    pb.IRQCHIP_MODE_SPLIT: IrqchipMode.SPLIT,
}


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A range of ports or addresses that a Session has claimed: it answers accesses, or writes ring a doorbell."""

    space: Space
    address: int
    length: int  # Bytes.
    doorbell: bool = False
    datamatch: int | None = None  # The only value that rings the doorbell.

    @classmethod
    def from_proto(cls, message: pb.RegionInfo) -> Self:
        datamatch = message.datamatch if message.HasField("datamatch") else None
        return cls(Space(message.space), message.address, message.length, message.doorbell, datamatch)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An open Session, or a restored line source that waits for its Session."""

    client: str  # The name that the client gave the Session.
    source: int  # Its line source, 1 or more.
    asserted_gsis: tuple[int, ...]  # The GSIs it drives high now, ascending.
    dropped_events: int  # The number of events that were dropped because the client did not read them in time.
    detached: bool = False  # The source waits for a Session that is opened with `resume`.
    resampled_gsis: tuple[
        int, ...
    ] = ()  # The GSIs it resamples, ascending. Sessions that resample the same GSI drive it together.
    regions: tuple[RegionInfo, ...] = ()  # The regions it has claimed, by space and address.

    @classmethod
    def from_proto(cls, message: pb.SessionInfo) -> Self:
        return cls(
            client=message.client,
            source=message.source,
            asserted_gsis=tuple(message.asserted_gsis),
            dropped_events=message.dropped_events,
            detached=message.detached,
            resampled_gsis=tuple(message.resampled_gsis),
            regions=tuple(map(RegionInfo.from_proto, message.regions)),
        )


@dataclass(frozen=True, slots=True)
class GicInfo:
    """The GIC of an arm64 VM.

    version      0 before there is one
    initialised  whether it has its SPIs, so that no vCPU can be created
    interrupts   the number of INTIDs, with a vCPU's 32 private ones; 0 before it is set
    host         the GIC of the VM's host
    """

    version: int = 0
    initialised: bool = False
    interrupts: int = 0
    host: GicHost = USUAL_GIC

    @classmethod
    def from_proto(cls, message: pb.GicInfo) -> Self:
        host = message.host
        return cls(
            version=message.version,
            initialised=message.initialised,
            interrupts=message.interrupts,
            host=GicHost(host.version, host.list_registers, host.priority_bits),
        )


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A VM.

    name
    irqchip                  whether it has PICs, an IOAPIC and local APICs; or a GIC; or s390's controllers
    vcpus                    the ids of its vCPUs, in order of creation
    sessions                 its Sessions, in order of opening
    asserted_gsis            the GSIs (arm64: lines) that line source 0 drives high; all unary callers share source 0
    irqchip_mode             the part of an irqchip that irqchipd holds
    pit                      whether it has a PIT
    asynchronous_interrupts  whether lines may be driven without stopping a vCPU
    halt_in_kernel           whether irqchipd serves a vCPU's HLT
    virtual                  whether its clock is virtual: only advance() moves it
    now_ns                   its time, nanoseconds since its creation; == ignores this field
    next_timer_ns            when its next timer is due, in the same time; None if no timer runs
    tsc_khz                  the frequency of its vCPUs' TSCs
    lateness_ns              how late its timers are, if they need more than its share; == ignores this field
    architecture
    gic                      arm64: its GIC, and that of its host; None if it has another architecture
    devices                  the types of the devices 0, 1 and so on of create_device(), at most 64
    """

    name: str
    irqchip: bool
    vcpus: tuple[int, ...]
    sessions: tuple[SessionInfo, ...]
    asserted_gsis: tuple[int, ...] = ()
    irqchip_mode: IrqchipMode = IrqchipMode.NONE
    pit: bool = False
    asynchronous_interrupts: bool = False
    halt_in_kernel: bool = False
    virtual: bool = False
    now_ns: int = field(default=0, compare=False)
    next_timer_ns: int | None = None
    tsc_khz: int = 1_000_000
    lateness_ns: int = field(default=0, compare=False)
    architecture: Architecture = Architecture.X86
    gic: GicInfo | None = None
    devices: tuple[int, ...] = ()

    @classmethod
    def from_proto(cls, message: pb.VmInfo) -> Self:
        return cls(
            name=message.name,
            irqchip=message.irqchip,
            vcpus=tuple(message.vcpus),
            sessions=tuple(SessionInfo.from_proto(session) for session in message.sessions),
            asserted_gsis=tuple(message.asserted_gsis),
            # A daemon that leaves the mode out has no split irqchip.
            irqchip_mode=_MODES.get(message.irqchip_mode, IrqchipMode.FULL if message.irqchip else IrqchipMode.NONE),
            pit=message.pit,
            asynchronous_interrupts=message.asynchronous_interrupts,
            halt_in_kernel=message.halt_in_kernel,
            virtual=message.clock == pb.CLOCK_KIND_VIRTUAL,
            now_ns=message.now_ns,
            next_timer_ns=message.next_timer_ns if message.HasField("next_timer_ns") else None,
            tsc_khz=message.tsc_khz,
            lateness_ns=message.lateness_ns,
            architecture=Architecture(message.architecture or Architecture.X86),
            gic=GicInfo.from_proto(message.gic) if message.HasField("gic") else None,
            devices=tuple(message.devices),
        )


@dataclass(frozen=True, slots=True)
class Advance:
    """The time of a virtual clock after advance_clock().

    now_ns         the VM's time, nanoseconds since its creation
    remaining_ns   the rest of the way, if the operation stopped after 10,000 expirations; 0 after advance()
    next_timer_ns  when the next timer is due: a time of the VM, not a distance from now; None if no timer runs
    """

    now_ns: int
    remaining_ns: int = 0
    next_timer_ns: int | None = None

    @classmethod
    def from_proto(cls, message: pb.AdvanceClockResponse) -> Self:
        next_timer = message.next_timer_ns if message.HasField("next_timer_ns") else None
        return cls(message.now_ns, message.remaining_ns, next_timer)


@dataclass(frozen=True, slots=True, repr=False)
class VmSnapshot:
    """The whole state of a VM, as bytes. This daemon or another can restore a VM from it.

    Snapshots are equal if their bytes are equal. On a virtual clock, the same operations give the same bytes.
    """

    _data: bytes

    def __repr__(self) -> str:
        return f"<VmSnapshot of {len(self._data)} bytes>"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """InvalidArgument if the bytes are not a snapshot. The daemon decides whether a snapshot can be restored."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidArgument(
                errno.EINVAL, f"data is of type {type(data).__name__}; it is the bytes that to_bytes() gave"
            )
        data = bytes(data)
        try:
            message = pb.VmSnapshot.FromString(data)
        except DecodeError:
            message = pb.VmSnapshot()
        if not message.version:  # No format number: these are other bytes, which happened to decode.
            raise InvalidArgument(
                errno.EINVAL,
                f"these {len(data)} bytes are no snapshot of a VM: give what `irqchipctl save` or Vm.snapshot() made",
            )
        return cls.from_proto(message)

    def to_bytes(self) -> bytes:
        """Returns the bytes. They are the same for every snapshot of the same state."""
        return self._data

    @classmethod
    def from_proto(cls, message: pb.VmSnapshot) -> Self:
        return cls(message.SerializeToString(deterministic=True))

    def to_proto(self) -> pb.VmSnapshot:
        return pb.VmSnapshot.FromString(self._data)


class Access(NamedTuple):
    """A guest's read.

    claimed     whether a chip or a device claims the address; the vCPU's process emulates an unclaimed access
    data        the value read, zero-extended; 0 if unclaimed, all ones if unanswered
    unanswered  whether the device that claims the address gave no answer, for example because it died
    """

    claimed: bool
    data: int
    unanswered: bool = False


class Claim(IntEnum):
    """The claimant of a guest's write. NOBODY is false: the vCPU's process emulates the access."""

    NOBODY = 0
    DEVICE = CLAIMED
    UNANSWERED = CLAIMED | UNANSWERED  # The device that claims the address gave no answer.


class ResetReason(IntEnum):
    """The reason for a VM's reset."""

    UNSPECIFIED = pb.RESET_REASON_UNSPECIFIED
    OPERATOR = pb.RESET_REASON_OPERATOR  # A person or a program outside the guest: the machine's reset button.
    GUEST = pb.RESET_REASON_GUEST  # The guest, for example through the keyboard controller.
    FAULT = pb.RESET_REASON_FAULT  # The guest could not continue, for example after a triple fault.
    WATCHDOG = pb.RESET_REASON_WATCHDOG


class Space(IntEnum):
    """An address space."""

    PIO = pb.ADDRESS_SPACE_PIO
    MMIO = pb.ADDRESS_SPACE_MMIO
    MEMORY = pb.ADDRESS_SPACE_MEMORY  # The memory of an s390 guest, for adapters' indicators.


@dataclass(frozen=True, slots=True)
class MsrAccess:
    """A guest's RDMSR or WRMSR.

    claimed  whether irqchipd has the register; the vCPU's process emulates an unclaimed access
    fault    whether the guest gets a general protection fault; then nothing was read or written
    data     the value read; 0 if unclaimed, after a fault, and for a write
    """

    claimed: bool
    fault: bool
    data: int = 0


@dataclass(frozen=True, slots=True)
class SysregAccess:
    """A guest's MRS or MSR of a system register of arm64.

    claimed  whether irqchipd has the register; the vCPU's process emulates an unclaimed access
    fault    whether the instruction is undefined; then nothing was read or written
    data     the value read; 0 if unclaimed, after a fault, and for a write
    """

    claimed: bool
    fault: bool
    data: int = 0


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt that a vCPU has accepted; of arm64, one that it is to accept by reading IAR."""

    vector: int  # Of arm64: 0.
    source: InterruptSource  # Any but ANY.


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that a vCPU has taken."""

    kind: SignalKind
    vector: int = 0  # The start page of a SIPI (the start address is vector << 12); otherwise 0.


Wake = Interrupt | Signal  # A halt ends with one of these.


@dataclass(frozen=True, slots=True)
class VcpuEvents:
    """Interrupts and signals that wait for a vCPU outside of any chip: struct kvm_vcpu_events.

    In set_events(), a field that is None keeps its value.
    """

    nmi_injected: bool | None = None  # An NMI was taken and not delivered: the vCPU takes it next.
    nmi_pending: int | None = None  # NMIs to take: at most 2, or 1 while one is injected or masked.
    nmi_masked: bool | None = None  # The vCPU is in an NMI's handler, and takes no NMI.
    smi_pending: bool | None = None
    interrupt_injected: bool | None = (
        None  # An acknowledged interrupt was not delivered: acknowledge() returns it next.
    )
    interrupt_vector: int = 0  # That interrupt's vector.
    sipi_vector: int | None = None  # The SIPI's vector for a vCPU that is set to SIPI_RECEIVED; events() leaves None.

    @classmethod
    def from_proto(cls, message: pb.VcpuEvents) -> Self:
        return cls(
            nmi_injected=message.nmi_injected,
            nmi_pending=message.nmi_pending,
            nmi_masked=message.nmi_masked,
            smi_pending=message.smi_pending,
            interrupt_injected=message.interrupt_injected,
            interrupt_vector=message.interrupt_vector,
        )

    def to_proto(self) -> pb.VcpuEvents:
        return pb.VcpuEvents(**{name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class PinRoute:
    """A GSI leads to a pin of a chip."""

    gsi: int
    chip: Chip
    pin: int  # 0 to 7 of a PIC, 0 to 23 of the IOAPIC; 0 to 987 of a GIC, which are its SPIs.
    flags: int = 0

    def to_proto(self) -> pb.RoutingEntry:
        pin = pb.IrqchipPin(chip_id=self.chip, pin=self.pin)
        return pb.RoutingEntry(gsi=self.gsi, irqchip=pin, flags=self.flags)


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """A GSI sends a message to local APICs."""

    gsi: int
    address: int
    data: int
    flags: int = 0  # 1: KVM_MSI_VALID_DEVID.

    def to_proto(self) -> pb.RoutingEntry:
        return pb.RoutingEntry(gsi=self.gsi, msi=pb.Msi(address=self.address, data=self.data), flags=self.flags)


@dataclass(frozen=True, slots=True)
class AdapterRoute:
    """A GSI leads to an s390 adapter: struct kvm_irq_routing_s390_adapter."""

    gsi: int
    ind_addr: int
    summary_addr: int
    ind_offset: int
    summary_offset: int
    adapter_id: int
    flags: int = 0

    def to_proto(self) -> pb.RoutingEntry:
        adapter = pb.S390Adapter(
            ind_addr=self.ind_addr,
            summary_addr=self.summary_addr,
            ind_offset=self.ind_offset,
            summary_offset=self.summary_offset,
            adapter_id=self.adapter_id,
        )
        return pb.RoutingEntry(gsi=self.gsi, s390_adapter=adapter, flags=self.flags)


Route = PinRoute | MsiRoute | AdapterRoute


def route_from_proto(message: pb.RoutingEntry) -> Route:
    if message.WhichOneof("destination") == "msi":
        return MsiRoute(message.gsi, message.msi.address, message.msi.data, message.flags)
    if message.WhichOneof("destination") == "s390_adapter":
        to = message.s390_adapter
        return AdapterRoute(
            *(message.gsi, to.ind_addr, to.summary_addr, to.ind_offset, to.summary_offset, to.adapter_id, message.flags)
        )
    from ._state import Chip

    return PinRoute(message.gsi, Chip(message.irqchip.chip_id), message.irqchip.pin, message.flags)


class InterruptKind(IntEnum):
    """The kind of source of an interrupt."""

    OTHER = pb.INTERRUPT_KIND_OTHER
    PIC = pb.INTERRUPT_KIND_PIC
    IOAPIC = pb.INTERRUPT_KIND_IOAPIC
    MSI = pb.INTERRUPT_KIND_MSI
    IPI = pb.INTERRUPT_KIND_IPI
    LOCAL = pb.INTERRUPT_KIND_LOCAL
    GIC = pb.INTERRUPT_KIND_GIC
    S390 = pb.INTERRUPT_KIND_S390


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram of times. Bucket n counts times of at most 2**n ns that were longer than half of that."""

    buckets: list[int]
    sum_ns: int

    @property
    def count(self) -> int:
        """The number of times."""
        return sum(self.buckets)

    def quantile(self, share: float) -> int | None:
        """Nanoseconds that at least this share of the times did not exceed, or None without times."""
        wanted, seen = share * self.count, 0
        for number, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                return 1 << number
        return None


@dataclass(frozen=True, slots=True)
class InterruptCount:
    """The number of an interrupt's occurrences, per vCPU, and its times.

    `number` is the vector, the INTID, or the type of an s390 interrupt. `accept` has the times from the rise of the
    line, or from the message, to the vCPU's acknowledgement, and `eoi` those from there to the end of interrupt.
    """

    kind: InterruptKind
    gsi: int | None
    number: int
    level: bool
    clients: list[str]
    counts: dict[int, int]
    accept: Latency
    eoi: Latency


@dataclass(frozen=True, slots=True)
class InterruptCounts:
    """The counts of `counted_ns` nanoseconds."""

    counted_ns: int
    vcpus: list[int]
    interrupts: list[InterruptCount]

    @classmethod
    def from_proto(cls, response: pb.GetInterruptsResponse) -> Self:
        return cls(
            response.counted_ns,
            list(response.vcpus),
            [
                InterruptCount(
                    InterruptKind(one.kind) if one.kind in set(map(int, InterruptKind)) else InterruptKind.OTHER,
                    one.gsi if one.HasField("gsi") else None,
                    one.number,
                    one.level,
                    list(one.clients),
                    dict(one.counts),
                    Latency(list(one.accept.buckets), one.accept.sum_ns),
                    Latency(list(one.eoi.buckets), one.eoi.sum_ns),
                )
                for one in response.interrupts
            ],
        )

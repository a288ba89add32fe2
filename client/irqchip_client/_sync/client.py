# Made from _asyncio/client.py by tools/unasync.py. Edit the original, then run `make proto`.
"""A connection to the daemon, and its VMs."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from irqchip_client import _calls, arm64
from irqchip_client._call import Call, check_flag, check_name, seconds
from irqchip_client._errors import InvalidArgument, IrqchipError, NotFound, Unavailable
from irqchip_client._model import (
    USUAL_GIC,
    Architecture,
    DeviceType,
    GicHost,
    InterruptCounts,
    ResetReason,
    VmInfo,
    VmSnapshot,
)
from irqchip_client._pages import Steps, every_vm, whole_vm
from irqchip_client._target import Target, embedded_target, resolve_target

from .connection import make_connection
from .machine import Attributes, Machine

if TYPE_CHECKING:  # Imported when a stream is opened: unary calls do not need these.
    from .session import Session
    from .streams import Watch

T = TypeVar("T")


def connect(target: str | None = None, *, timeout: float = 10.0) -> Client:
    """A Client of the daemon at `target`: `unix:///absolute/path`, `tcp://host:port`, or `embedded:`, see embedded().

    Without `target`, the environment variable IRQCHIP_TARGET names the daemon. Without that variable, the socket is
    `$XDG_RUNTIME_DIR/irqchipd/irqchipd.sock`, or `/tmp/irqchipd-UID/irqchipd.sock` if XDG_RUNTIME_DIR is not set.

    connect() does no I/O. The first call connects, and raises Unavailable if no daemon answers. A call raises
    IrqchipError(EACCES) if the folder of the default socket belongs to another user or is open to others, because
    another user might answer. A call that takes longer than `timeout` seconds raises TimedOut. connect() raises
    InvalidArgument for a malformed target or timeout.
    """
    return Client(resolve_target(target), seconds(timeout))


def embedded(listen: str | None = None, *, timeout: float = 10.0) -> Client:
    """A Client of a new daemon in this process, like connect("embedded:"). The daemon ends with the Client.

    The Client calls the daemon's functions, and sends no messages. With `listen`, the daemon also listens on the unix
    socket of this path. Other processes, such as devices, connect to `unix:///that/path` as to any daemon. When this
    process dies, the VMs are gone. IrqchipError(EADDRINUSE) if the daemon cannot listen.
    """
    return connect(embedded_target(listen), timeout=timeout)


class Client:
    """A connection to the daemon. Any number of threads may use it. Made by connect()."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target.uri
        self.timeout = timeout
        self._connection = make_connection(target, timeout)
        self._owners: dict[str, Session] = {}  # By the names of the ephemeral VMs.

    def create_vm(
        self,
        name: str = "",
        *,
        architecture: Architecture = Architecture.X86,
        gic: GicHost = USUAL_GIC,
        virtual_clock: bool = False,
        tsc_khz: int = 0,
        ephemeral: bool = False,
    ) -> Vm:
        """Creates an empty VM, without an irqchip and vCPUs. If `name` is empty, the daemon chooses one.

        `with client.create_vm() as vm:` deletes the VM at the end of the block.

        name           1 to 64 of the characters A-Z a-z 0-9 . _ -, the first a letter or a digit
        architecture   the kind of processor, and so of interrupt controller
        gic            arm64: the GIC of the VM's host
        virtual_clock  only advance() moves the VM's clock: the same operations give the same state, to the bit
        tsc_khz        x86: the frequency of the vCPUs' TSCs, 1 to 100,000,000; 0 means 1,000,000, one tick per ns
        ephemeral      the daemon deletes the VM when this Client is closed, or when its process ends or is killed. For
                       this, create_vm() opens a Session "owner"

        Raises AlreadyExists if the name is taken, InvalidArgument if an argument is invalid, and LimitReached at the
        daemon's limit of VMs.
        """
        check_flag("ephemeral", ephemeral)
        call = _calls.create_vm(name, virtual_clock, tsc_khz, architecture, gic)
        if not ephemeral:
            return Vm(self, self._connection.unary(call))
        owner = self._session("", "owner", (), 1, 1, new_vm=call.request)
        self._owners[owner.vm] = owner
        return Vm(self, owner.vm)

    def restore_vm(self, snapshot: VmSnapshot, name: str = "") -> Vm:
        """Creates a VM from a snapshot() of this daemon or another. The VM's clock continues from the saved time.

        The line sources of Sessions are restored with their levels. session(resume=True) takes a line source over.
        VmSnapshot.from_bytes() makes a snapshot from bytes. Raises AlreadyExists if the name is taken, InvalidArgument
        if no VM can have this state, and LimitReached at the daemon's limit of VMs.
        """
        return Vm(self, self._connection.unary(_calls.restore_vm(snapshot, name)))

    def vm(self, name: str) -> Vm:
        """A handle on a VM. No I/O: if there is no such VM, the handle's first call raises NotFound."""
        check_name("VM", name)
        if not name:
            raise InvalidArgument(errno.EINVAL, "name is empty; vms() lists the VMs")
        return Vm(self, name)

    def vms(self) -> list[VmInfo]:
        """Returns all VMs, in the order of their names."""
        return self._follow(every_vm())

    def delete_vm(self, name: str) -> None:
        """Deletes a VM. Its Sessions and Watches end. Raises NotFound if there is no such VM."""
        self._connection.unary(_calls.delete_vm(), name)
        if (owner := self._owners.pop(name, None)) is not None:
            owner.close()

    def check_extension(
        self, capability: int, architecture: Architecture = Architecture.X86, gic: GicHost = USUAL_GIC
    ) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_* number on /dev/kvm. Returns 0 for a capability that irqchipd lacks."""
        return self._connection.unary(_calls.check_extension(capability, architecture, gic))

    def close(self) -> None:
        """Closes the connection. Its Sessions and Watches end."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.target}{', closed' if self._connection.peer.closed else ''}>"

    def _follow(self, steps: Steps[T]) -> T:
        """Makes the calls of `steps`, and returns their result."""
        try:
            call, vm = next(steps)
            while True:
                try:
                    response = self._connection.unary(call, vm)
                except IrqchipError as error:
                    call, vm = steps.throw(error)
                else:
                    call, vm = steps.send(response)
        except StopIteration as end:
            made: T = end.value
            return made

    def _session(self, *arguments: Any, **options: Any) -> Session:
        """A Session, with the arguments of a SessionCore."""
        from irqchip_client._session import SessionCore

        from .session import Session

        core = SessionCore(*arguments, **options)
        return Session(core, self._connection.transport(core))


class Vm(Machine):
    """A VM. Every call raises NotFound if no VM has this name."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._connection = client._connection

    def __repr__(self) -> str:
        return f"<Vm {self.name!r} of {self._client.target}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(NotFound, Unavailable):  # Another client deleted it, or the daemon has ended.
            self.delete()

    def info(self) -> VmInfo:
        """Returns the VM's irqchip, its vCPUs, its Sessions, and the lines that the Sessions hold."""
        return self._client._follow(whole_vm(self.name))

    def interrupts(self) -> InterruptCounts:
        """Returns how often each vCPU took each interrupt, and each interrupt's times.

        The daemon begins to count at the first call, and stops 60 s after the last one.
        """
        return self._connection.unary(_calls.get_interrupts(), self.name)

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP. x86: creates both PICs, the IOAPIC and the default routing. arm64: creates a GICv2.

        vCPUs that are created later have a local APIC. Raises AlreadyExists if the VM has an irqchip, and
        InvalidArgument once a vCPU exists.
        """
        self._connection.unary(_calls.create_irqchip(), self.name)

    def create_device(self, type: DeviceType, flags: int = 0) -> Attributes:  # noqa: A002
        """KVM_CREATE_DEVICE. Returns a handle on the device.

        Raises AlreadyExists if the VM has one, Busy once a vCPU has run, and NotReady (ENODEV) if the VM's host has no
        device of this type.
        """
        return self.device(self._connection.unary(_calls.create_device(type, flags), self.name))

    def create_gic(self, version: int = 3, interrupts: int = 256) -> Attributes:
        """Creates a GICv2 or a GICv3 and initialises it: create_device() and its further steps, after the vCPUs.

        Its frames are at the addresses of QEMU's virt board: arm64.DISTRIBUTOR, and arm64.CPU_INTERFACE or
        arm64.REDISTRIBUTORS. `interrupts` is 64 to 992, a multiple of 32, with the 32 private ones of each vCPU.
        """
        steps = arm64.gic_attributes(version, interrupts)
        gic = self.create_device(DeviceType.ARM_VGIC_V2 if version == 2 else DeviceType.ARM_VGIC_V3)
        for group, attr, value in steps:
            gic.set(group, attr, value)
        return gic

    def set_device_addr(self, id: int, address: int) -> None:  # noqa: A002
        """KVM_ARM_SET_DEVICE_ADDR: the older way to place a GICv2's frames. NotReady (ENODEV) without a GICv2."""
        self._connection.unary(_calls.set_device_addr(id, address), self.name)

    def check_vm_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_* number on the VM."""
        return self._connection.unary(_calls.check_vm_extension(capability), self.name)

    def create_pit(self, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: creates an 8254 at ports 40h to 43h, which drives GSI 0. `speaker` adds port 61h.

        Raises AlreadyExists if the VM has a PIT, and NotFound if the VM has no PIC (as with a split irqchip).
        """
        self._connection.unary(_calls.create_pit(speaker), self.name)

    def enable_cap(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP of a KVM_CAP_* number. Raises InvalidArgument for one that irqchipd cannot enable."""
        self._connection.unary(_calls.enable_cap(capability, args), self.name)

    def enable_split_irqchip(self, reserved_gsis: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: irqchipd holds only the local APICs, and the VMM holds the PICs and the IOAPIC.

        The first `reserved_gsis` GSIs are routes of the VMM's IOAPIC. Raises AlreadyExists if the VM has an irqchip or
        a vCPU, and InvalidArgument for more than 4096 GSIs.
        """
        self.enable_cap(_calls.KVM_CAP_SPLIT_IRQCHIP, reserved_gsis)

    def set_boot_cpu_id(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID: chooses the boot CPU. The default is vCPU 0.

        Raises Busy once a vCPU exists, and InvalidArgument for an id that no vCPU can have.
        """
        self._connection.unary(_calls.set_boot_cpu_id(vcpu), self.name)

    def reset(self, reason: ResetReason = ResetReason.OPERATOR) -> None:
        """Resets the chips, the local APICs and the run states of the vCPUs to their initial state.

        Time, routing, Sessions and the levels that Sessions drive do not change. Every Session gets a VmReset.
        """
        self._connection.unary(_calls.reset_vm(reason), self.name)

    def snapshot(self) -> VmSnapshot:
        """Returns the VM's whole state, for restore_vm(). It includes the state that the kernel's structs lack."""
        return self._connection.unary(_calls.save_vm(), self.name)

    def delete(self) -> None:
        """Deletes the VM. Its Sessions and Watches end."""
        self._client.delete_vm(self.name)

    def session(
        self,
        client: str = "",
        vcpus: Iterable[int] = (),
        *,
        gsis: Iterable[int] = (),
        resampled_gsis: Iterable[int] = (),
        resume: bool = False,
        event_buffer: int = 1024,
        max_in_flight: int = 64,
    ) -> Session:
        """Opens a Session: a line source of its own, batches of operations, and events.

        client          a name for logs and lists; at most 64 characters
        vcpus           the vCPUs whose InterruptPending, VcpuSignal and IoapicEoi events the Session gets; they need
                        not exist yet
        gsis            the GSIs whose GsiAcknowledged and GsiMasked events the Session gets
        resampled_gsis  level-triggered lines to resample, like a KVM_IRQFD with a resamplefd. Such a line stays high
                        until its interrupt is acknowledged. Then it goes low, and the Session gets a GsiResampled.
                        lower() and pulse() raise InvalidArgument. Several Sessions may resample a GSI: each gets the
                        event, and the line also goes low when the last of them ends. InvalidArgument without a full
                        irqchip
        resume          take over the line source that a restored VM holds for a client of this name, with its levels
                        and its resampled GSIs. NotFound if the VM holds no such line source
        event_buffer    the most VcpuSignals that may wait to be read; further ones are dropped and counted
        max_in_flight   the most batches, including halts, that may wait for their answers

        A blocking Session uses the daemon's AF_UNIX port if the daemon is on this host, and gRPC otherwise. A Session
        of asyncio uses gRPC. IRQCHIP_PORT in the environment sets how many microseconds a Session polls the port before
        it blocks; "off" restricts Sessions to gRPC.
        """
        return self._client._session(
            self.name,
            client,
            vcpus,
            event_buffer,
            max_in_flight,
            gsis=gsis,
            resampled_gsis=resampled_gsis,
            resume=resume,
        )

    def watch(
        self,
        tracepoints: Iterable[str] = (),
        *,
        gsis: Iterable[int] = (),
        vcpus: Iterable[int] = (),
        probes: bool = False,
    ) -> Watch:
        """Returns the events of these tracepoints, which have the kernel's names. Without names: all events.

        With GSIs or vCPUs, returns only the events about one of them: of a GSI also those at the chips' pins and the
        MSIs to which it leads, of a vCPU its actions and the messages to it. gsis may have an arm64 VM's lines, too, as
        arm64.spi(4). With probes, a ProbesChanged with all registers and lines comes first, and then one after each
        operation that changed some.

        Everything after this returns is traced. An unknown name raises InvalidArgument, when
        the first event is read or earlier.
        """
        return self._connection.watch(_calls.watch_request(self.name, tracepoints, gsis, vcpus, probes))

    def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return [self._connection.unary(call, self.name) for call in calls]

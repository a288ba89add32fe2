# Made from _asyncio/client.py by tools/unasync.py. Edit the original, then run `make proto`.
"""A connection to the daemon, and its VMs."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from irqchip_client import _calls
from irqchip_client._call import Call, check_flag, check_name, seconds
from irqchip_client._errors import InvalidArgument, IrqchipError, NotFound, Unavailable
from irqchip_client._model import ResetReason, VmInfo, VmSnapshot
from irqchip_client._pages import Steps, every_vm, whole_vm
from irqchip_client._target import Target, embedded_target, resolve_target

from .connection import make_connection
from .machine import Machine

if TYPE_CHECKING:  # Imported when a stream is opened: unary calls need none of them.
    from .session import Session
    from .streams import Watch

T = TypeVar("T")


def connect(target: str | None = None, *, timeout: float = 10.0) -> Client:
    """A Client of the daemon at `target`: `unix:///absolute/path` or `tcp://host:port`.

    The default is the environment variable IRQCHIP_TARGET, else the socket `$XDG_RUNTIME_DIR/irqchipd/irqchipd.sock`,
    or `/tmp/irqchipd-UID/irqchipd.sock` where XDG_RUNTIME_DIR is not set. No I/O: the first call connects, and raises
    Unavailable where no daemon answers. For the default socket it raises IrqchipError(EACCES) where the folder does not
    belong to this user alone: another user might answer. A call that takes longer than `timeout` seconds raises
    TimedOut. Raises InvalidArgument for a malformed target or timeout.
    """
    return Client(resolve_target(target), seconds(timeout))


def embedded(listen: str | None = None, *, timeout: float = 10.0) -> Client:
    """A Client of a daemon in this process, which ends with the Client: connect("embedded:").

    Calls are calls of its functions, and no message. With `listen` it listens on the unix socket of this path, and
    other processes, such as those of devices, connect to `unix:///that/path` as to any daemon. If this process dies,
    the VMs are gone. IrqchipError(EADDRINUSE) where the daemon can't listen.
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
        self, name: str = "", *, virtual_clock: bool = False, tsc_khz: int = 0, ephemeral: bool = False
    ) -> Vm:
        """Makes an empty VM: no irqchip and no vCPU. Without a name the daemon picks one.

        `with client.create_vm() as vm:` deletes it in the end.

        virtual_clock  its time moves by advance() alone: the same operations give the same state, to the bit
        tsc_khz        the frequency of its vCPUs' TSCs, 1 to 100,000,000; 0 is 1,000,000, one tick a nanosecond
        ephemeral      the daemon deletes the VM when this Client is closed or its process ends, however it ends: when
                       the Session "owner" ends, which this opens

        AlreadyExists where the name is taken; InvalidArgument where it is not 1 to 64 of A-Z a-z 0-9 . _ - that
        begin with a letter or digit; LimitReached.
        """
        check_flag("ephemeral", ephemeral)
        call = _calls.create_vm(name, virtual_clock, tsc_khz)
        if not ephemeral:
            return Vm(self, self._connection.unary(call))
        owner = self._session("", "owner", (), 1, 1, new_vm=call.request)
        self._owners[owner.vm] = owner
        return Vm(self, owner.vm)

    def restore_vm(self, snapshot: VmSnapshot, name: str = "") -> Vm:
        """Makes a VM from a snapshot(), here or elsewhere; its clock goes on from where it was saved.

        The line sources of Sessions come back with the levels that they held: session(resume=True) takes them over.
        AlreadyExists where the name is taken; InvalidArgument where no VM can be in that state; LimitReached.
        VmSnapshot.from_bytes() makes a snapshot from bytes.
        """
        return Vm(self, self._connection.unary(_calls.restore_vm(snapshot, name)))

    def vm(self, name: str) -> Vm:
        """A handle on a VM. No I/O: if there is no such VM, the handle's first call raises NotFound."""
        check_name("VM", name)
        if not name:
            raise InvalidArgument(errno.EINVAL, "name is empty; vms() lists the VMs that there are")
        return Vm(self, name)

    def vms(self) -> list[VmInfo]:
        """All VMs, ordered by name."""
        return self._follow(every_vm())

    def delete_vm(self, name: str) -> None:
        """Removes a VM. Its Sessions and Watches end. NotFound."""
        self._connection.unary(_calls.delete_vm(), name)
        if (owner := self._owners.pop(name, None)) is not None:
            owner.close()

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_* number: 0 where irqchipd lacks it."""
        return self._connection.unary(_calls.check_extension(capability))

    def close(self) -> None:
        """Closes the connection: its Sessions and Watches end."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.target}{', closed' if self._connection.peer.closed else ''}>"

    def _follow(self, steps: Steps[T]) -> T:
        """Makes the calls that `steps` asks for, and returns what it makes of them."""
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
    """A VM. Every call raises NotFound where no VM has this name."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._connection = client._connection

    def __repr__(self) -> str:
        return f"<Vm {self.name!r} of {self._client.target}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(NotFound, Unavailable):  # As somebody else deleted it, or the daemon has gone.
            self.delete()

    def info(self) -> VmInfo:
        """The VM's irqchip, its vCPUs, its open Sessions and the lines they hold."""
        return self._client._follow(whole_vm(self.name))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: both PICs, the IOAPIC and the default routing; vCPUs created later have a local APIC.

        AlreadyExists where it has one, InvalidArgument once a vCPU exists.
        """
        self._connection.unary(_calls.create_irqchip(), self.name)

    def create_pit(self, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: an 8254 at ports 40h to 43h that drives GSI 0, and with `speaker` port 61h.

        AlreadyExists where it has one, NotFound without a PIC: also where the irqchip is split.
        """
        self._connection.unary(_calls.create_pit(speaker), self.name)

    def enable_cap(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP of a KVM_CAP_* number. InvalidArgument for one that irqchipd can't enable."""
        self._connection.unary(_calls.enable_cap(capability, args), self.name)

    def enable_split_irqchip(self, reserved_gsis: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: local APICs alone. The VMM has PICs and IOAPIC, and the routes of the first GSIs.

        AlreadyExists where it has an irqchip or a vCPU, InvalidArgument above 4096.
        """
        self.enable_cap(_calls.KVM_CAP_SPLIT_IRQCHIP, reserved_gsis)

    def set_boot_cpu_id(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID: makes a vCPU the boot CPU, which by default is vCPU 0.

        Busy once a vCPU exists, InvalidArgument for an id that none can have.
        """
        self._connection.unary(_calls.set_boot_cpu_id(vcpu), self.name)

    def reset(self, reason: ResetReason = ResetReason.OPERATOR) -> None:
        """Resets chips, local APICs and run states to the state in which they were made.

        Time, routing, Sessions and the levels that they drive stay. Every Session gets a VmReset.
        """
        self._connection.unary(_calls.reset_vm(reason), self.name)

    def snapshot(self) -> VmSnapshot:
        """The VM's whole state, for restore_vm(): also the parts that the kernel's structs leave out."""
        return self._connection.unary(_calls.save_vm(), self.name)

    def delete(self) -> None:
        """Removes the VM. Its Sessions and Watches end."""
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

        client          your name for the Session, for people to read; at most 64 characters
        vcpus           receive InterruptPending, VcpuSignal and IoapicEoi events of these; they need not exist yet
        gsis            receive GsiAcknowledged and GsiMasked events of these
        resampled_gsis  level lines to resample, as a KVM_IRQFD with a resamplefd does: such a line, once raised, stays
                        high until it is acknowledged; then it goes low, and a GsiResampled comes. lower() and pulse()
                        raise InvalidArgument. Several Sessions may resample a GSI: each gets the event, and the line
                        goes low at the latest when the last of them ends. InvalidArgument without a full irqchip
        resume          take over the line source that a restored VM kept for the client of this name, with its
                        levels and the GSIs that it resamples. NotFound without such a source
        event_buffer    the most VcpuSignals that may wait to be read; further ones are dropped, and counted
        max_in_flight   the most batches that may wait for their answers, halts among them

        A blocking Session goes over the daemon's AF_UNIX port where that is on this host, else over gRPC; asyncio's
        always goes over gRPC. The environment's IRQCHIP_PORT has the microseconds to poll the port before blocking, or
        "off" for gRPC alone.
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

    def watch(self, tracepoints: Iterable[str] = ()) -> Watch:
        """Trace events, by the names of the kernel's tracepoints; without names, all of them.

        What happens after this returns is seen. An unknown name raises InvalidArgument, at
        the latest when read.
        """
        return self._connection.watch(_calls.watch_request(self.name, tracepoints))

    def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return [self._connection.unary(call, self.name) for call in calls]

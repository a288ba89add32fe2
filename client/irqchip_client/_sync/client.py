"""A connection to the daemon, and its VMs."""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import grpc

from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import _calls
from irqchip_client._call import Call, check_name, seconds, time_allowed
from irqchip_client._channels import Lasting, Peer
from irqchip_client._errors import InvalidArgument, IrqchipError, NotFound, Unavailable, client_closed, error_from_rpc
from irqchip_client._model import ResetReason, VmInfo, VmSnapshot
from irqchip_client._pages import Steps, every_vm, whole_vm
from irqchip_client._target import Target, port_poll_ns, resolve_target

from .machine import Machine

if TYPE_CHECKING:  # Loaded by who opens a stream: who only calls need not wait for them.
    from irqchip_client._session import SessionCore

    from .port import PortSession
    from .session import Session, Watch

T = TypeVar("T")
LastingCall = TypeVar("LastingCall", bound=grpc.Call)


def connect(target: str | None = None, *, timeout: float = 10.0) -> Client:
    """A Client of the daemon at `target`: `unix:///absolute/path` or `tcp://host:port`.

    The default is the environment variable IRQCHIP_TARGET, else the socket `$XDG_RUNTIME_DIR/irqchipd/irqchipd.sock`,
    or `/tmp/irqchipd-UID/irqchipd.sock` where XDG_RUNTIME_DIR is not set. No I/O: the first call connects, and raises
    Unavailable where no daemon answers; and, of a default socket, IrqchipError(EACCES) where its folder is not this
    user's alone: a stranger might answer. A call that takes longer than `timeout` seconds raises TimedOut. Raises
    InvalidArgument for a malformed target or timeout.
    """
    return Client(resolve_target(target), seconds(timeout))


class _Connection(NamedTuple):
    channel: grpc.Channel
    rpcs: IrqchipServiceStub


class Client:
    """A connection to the daemon. Any number of threads may use it. Made by connect()."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target.uri
        self.timeout = timeout
        self._target = target
        self._peer = Peer(target.uri, timeout)
        self._first = self._connect()  # Of the calls that are soon over.
        self._rpcs = self._first.rpcs
        self._lasting = Lasting(self._connect)
        self._owners: dict[str, Session] = {}  # Of ephemeral VMs, by their names.
        self._port = target.port
        self._port_sessions: weakref.WeakSet[PortSession] = weakref.WeakSet()

    def create_vm(
        self, name: str = "", *, virtual_clock: bool = False, tsc_khz: int = 0, ephemeral: bool = False
    ) -> Vm:
        """Makes an empty VM: no irqchip and no vCPU. Without a name the daemon picks one.

        `with client.create_vm() as vm:` deletes it in the end.

        virtual_clock  its time moves by advance() alone: the same operations give the same state, to the bit
        tsc_khz        the frequency of its vCPUs' TSCs, 1 to 100,000,000; 0 is 1,000,000, one tick a nanosecond
        ephemeral      the daemon deletes it when this Client is closed or its process ends, however it ends. A Session
                       named "owner" is what it hangs on

        AlreadyExists where the name is taken; InvalidArgument where it is not 1 to 64 of A-Z a-z 0-9 . _ - that
        begin with a letter or digit; LimitReached.
        """
        call = _calls.create_vm(name, virtual_clock, tsc_khz)
        if not ephemeral:
            return Vm(self, self._unary(call))
        from irqchip_client._session import SessionCore

        owner = self._session(SessionCore("", "owner", (), 1, 1, new_vm=call.request))
        self._owners[owner.vm] = owner
        return Vm(self, owner.vm)

    def restore_vm(self, snapshot: VmSnapshot, name: str = "") -> Vm:
        """Makes a VM from what snapshot() gave, here or elsewhere; its clock goes on from where it was saved.

        The line sources of Sessions come back with the levels that they held: session(resume=True) takes them over.
        AlreadyExists where the name is taken; InvalidArgument where no VM can be in that state; LimitReached. Of bytes
        VmSnapshot.from_bytes() makes the snapshot.
        """
        return Vm(self, self._unary(_calls.restore_vm(snapshot, name)))

    def vm(self, name: str) -> Vm:
        """A handle on a VM. No I/O: a VM that does not exist shows when it is used."""
        check_name("VM", name)
        if not name:
            raise InvalidArgument(errno.EINVAL, "name is empty; vms() lists the VMs that there are")
        return Vm(self, name)

    def vms(self) -> list[VmInfo]:
        """All VMs, ordered by name."""
        return self._follow(every_vm())

    def delete_vm(self, name: str) -> None:
        """Removes a VM. Its Sessions and Watches end. NotFound."""
        self._unary(_calls.delete_vm(), name)
        if (owner := self._owners.pop(name, None)) is not None:
            owner.close()

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_* number: 0 where irqchipd lacks it."""
        return self._unary(_calls.check_extension(capability))

    def close(self) -> None:
        """Closes the connection: its Sessions and Watches end."""
        self._peer.closed = True
        for connection in (self._first, *self._lasting.close()):
            connection.channel.close()
        for session in list(self._port_sessions):
            session.disconnect(client_closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.target}{', closed' if self._peer.closed else ''}>"

    def _follow(self, steps: Steps[T]) -> T:
        """Makes the calls that `steps` asks for, and returns what it makes of them."""
        try:
            call, vm = next(steps)
            while True:
                try:
                    response = self._unary(call, vm)
                except IrqchipError as error:
                    call, vm = steps.throw(error)
                else:
                    call, vm = steps.send(response)
        except StopIteration as end:
            made: T = end.value
            return made

    def _unary(self, call: Call[T], vm: str = "") -> T:
        request = call.request_for(vm)
        self._check()
        try:
            if call.is_halt:
                timeout = time_allowed([call], self.timeout)
                return call.parse(
                    _wait(self._lasting_call(lambda rpcs: getattr(rpcs, call.method).future(request, timeout=timeout)))
                )
            return call.parse(getattr(self._rpcs, call.method)(request, timeout=self.timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.target, closed=self._peer.closed) from error
        except ValueError:  # gRPC's, of a channel that was closed just now.
            if self._peer.closed:
                raise client_closed() from None
            raise

    def _session(self, core: SessionCore) -> Session:
        from .port import PortSession, connect_port
        from .session import Session

        self._check()
        deadline = time.monotonic() + self.timeout
        poll_ns = port_poll_ns()
        if poll_ns is None or (connection := connect_port(self._port, self.timeout)) is None:
            return Session(
                lambda requests: self._lasting_call(lambda rpcs: rpcs.Session(requests)), core, self._peer, deadline
            )
        session = PortSession(connection, core, self._peer, deadline, poll_ns)
        self._port_sessions.add(session)
        if self._peer.closed:  # Just now, and close() did not see it.
            session.close()
            raise client_closed()
        return session

    def _lasting_call(self, begin: Callable[[IrqchipServiceStub], LastingCall]) -> LastingCall:
        """Begins a call that lasts, over a channel of those."""
        self._check()
        connection = self._lasting.take()
        give_back = partial(self._give_back, connection)
        try:
            call = begin(connection.rpcs)
        except BaseException as error:
            give_back()
            if isinstance(error, ValueError) and self._peer.closed:
                raise client_closed() from None
            raise
        if not call.add_callback(give_back):
            give_back()
        return call

    def _give_back(self, connection: _Connection) -> None:
        if self._lasting.give_back(connection):
            # Not on this thread, which may be gRPC's: close() waits for that. Where there can't be another, the channel
            # closes when it is collected.
            with suppress(RuntimeError):
                threading.Thread(target=connection.channel.close, daemon=True).start()

    def _connect(self) -> _Connection:
        channel = grpc.insecure_channel(self._target.address, options=self._target.channel_options)
        return _Connection(channel, IrqchipServiceStub(channel))

    def _check(self) -> None:
        if self._peer.closed:
            raise client_closed()
        self._target.check()


def _wait(answer: grpc.Future[Any]) -> Any:
    """The response. Whoever stops waiting for it, by Ctrl-C say, cancels the call, so that the vCPU halts no more."""
    try:
        return answer.result()
    except BaseException:
        answer.cancel()
        raise


class Vm(Machine):
    """A VM. Every call raises NotFound where there is none of its name."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client

    def __repr__(self) -> str:
        return f"<Vm {self.name!r} of {self._client.target}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(NotFound, Unavailable):  # As somebody else deleted it, or the daemon has gone.
            self.delete()

    def info(self) -> VmInfo:
        """Its irqchip, its vCPUs, its open Sessions and the lines they hold."""
        return self._client._follow(whole_vm(self.name))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: both PICs, the IOAPIC and the default routing; vCPUs created later have a local APIC.

        AlreadyExists where it has one, InvalidArgument once a vCPU exists.
        """
        self._client._unary(_calls.create_irqchip(), self.name)

    def create_pit(self, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: an 8254 at ports 40h to 43h that drives GSI 0, and with `speaker` port 61h.

        AlreadyExists where it has one, NotFound without a PIC: also where the irqchip is split.
        """
        self._client._unary(_calls.create_pit(speaker), self.name)

    def enable_cap(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP of a KVM_CAP_* number. InvalidArgument for one that irqchipd can't enable."""
        self._client._unary(_calls.enable_cap(capability, args), self.name)

    def enable_split_irqchip(self, reserved_gsis: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: local APICs alone; PICs and IOAPIC are the VMM's, whose routes the first GSIs are.

        AlreadyExists where it has an irqchip or a vCPU, InvalidArgument above 4096.
        """
        self.enable_cap(_calls.KVM_CAP_SPLIT_IRQCHIP, reserved_gsis)

    def set_boot_cpu_id(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU is the boot CPU, 0 at first.

        Busy once a vCPU exists, InvalidArgument for an id that none can have.
        """
        self._client._unary(_calls.set_boot_cpu_id(vcpu), self.name)

    def reset(self, reason: ResetReason = ResetReason.OPERATOR) -> None:
        """Brings chips, local APICs and run states to where they were when they were made.

        Time, routing, Sessions and the levels that they drive stay. All Sessions are told, by a VmReset.
        """
        self._client._unary(_calls.reset_vm(reason), self.name)

    def snapshot(self) -> VmSnapshot:
        """Its whole state, for restore_vm(): also what the kernel's structs leave out."""
        return self._client._unary(_calls.save_vm(), self.name)

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

        client          what you call yourself, for people to read; at most 64 characters
        vcpus           whose InterruptPending, VcpuSignal and IoapicEoi events to receive; they need not exist yet
        gsis            whose GsiAcknowledged and GsiMasked events to receive
        resampled_gsis  level lines to resample, as a KVM_IRQFD with a resamplefd does: such a line, once raised, stays
                        high until it is acknowledged; then it falls, and a GsiResampled comes. It can only be raised:
                        lower() and pulse() raise InvalidArgument. Several Sessions may resample one GSI: all hear, and
                        it falls at the latest when the last of them ends. InvalidArgument without a full irqchip
        resume          take over the line source that a restored VM kept for the client of this name, with its
                        levels and the GSIs that it resamples. NotFound where there is none
        event_buffer    how many VcpuSignals may wait to be read; more are dropped, and counted
        max_in_flight   how many batches may wait for their answers, halts among them

        It goes over the daemon's AF_UNIX port where that is on this host, else over gRPC: Session.transport says which.
        The environment's IRQCHIP_PORT has the microseconds to poll before blocking, or "off" for gRPC alone.
        """
        from irqchip_client._session import SessionCore

        core = SessionCore(
            self.name,
            client,
            vcpus,
            event_buffer,
            max_in_flight,
            gsis=gsis,
            resampled_gsis=resampled_gsis,
            resume=resume,
        )
        return self._client._session(core)

    def watch(self, tracepoints: Iterable[str] = ()) -> Watch:
        """Trace events, by the names of the kernel's tracepoints; all of them where none is named.

        What happens after this returns is seen. An unknown name raises InvalidArgument, at the latest when read.
        """
        from .session import Watch

        request = _calls.watch_request(self.name, tracepoints)
        return Watch(self._client._lasting_call(lambda rpcs: rpcs.Watch(request)), self._client._peer)

    def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return [self._client._unary(call, self.name) for call in calls]

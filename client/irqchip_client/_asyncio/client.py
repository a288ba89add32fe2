"""A connection to the daemon, and its VMs."""

from __future__ import annotations

import asyncio
import errno
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
from irqchip_client._session import SessionCore
from irqchip_client._target import Target, resolve_target

from .machine import Machine
from .session import Session, Watch, task_is_cancelled

if TYPE_CHECKING:
    from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceAsyncStub  # Only its type: it is the same class.

T = TypeVar("T")
LastingCall = TypeVar("LastingCall", bound=grpc.aio.Call)


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
    channel: grpc.aio.Channel
    rpcs: IrqchipServiceAsyncStub


class Client:
    """A connection to the daemon, for the event loop it was made in. Made by connect()."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target.uri
        self.timeout = timeout
        self._target = target
        self._peer = Peer(target.uri, timeout)
        self._first = self._connect()  # Of the calls that are soon over.
        self._rpcs = self._first.rpcs
        self._lasting = Lasting(self._connect)
        self._owners: dict[str, Session] = {}  # Of ephemeral VMs, by their names.
        self._closing: set[asyncio.Task[None]] = set()  # The event loop keeps no task alive.

    async def create_vm(
        self, name: str = "", *, virtual_clock: bool = False, tsc_khz: int = 0, ephemeral: bool = False
    ) -> Vm:
        """Makes an empty VM: no irqchip and no vCPU. Without a name the daemon picks one.

        `async with await client.create_vm() as vm:` deletes it in the end.

        virtual_clock  its time moves by advance() alone: the same operations give the same state, to the bit
        tsc_khz        the frequency of its vCPUs' TSCs, 1 to 100,000,000; 0 is 1,000,000, one tick a nanosecond
        ephemeral      the daemon deletes it when this Client is closed or its process ends, however it ends. A Session
                       named "owner" is what it hangs on

        AlreadyExists where the name is taken; InvalidArgument where it is not 1 to 64 of A-Z a-z 0-9 . _ - that
        begin with a letter or digit; LimitReached.
        """
        call = _calls.create_vm(name, virtual_clock, tsc_khz)
        if not ephemeral:
            return Vm(self, await self._unary(call))
        owner = await self._session(SessionCore("", "owner", (), 1, 1, new_vm=call.request))
        self._owners[owner.vm] = owner
        return Vm(self, owner.vm)

    async def restore_vm(self, snapshot: VmSnapshot, name: str = "") -> Vm:
        """Makes a VM from what snapshot() gave, here or elsewhere; its clock goes on from where it was saved.

        The line sources of Sessions come back with the levels that they held: session(resume=True) takes them over.
        AlreadyExists where the name is taken; InvalidArgument where no VM can be in that state; LimitReached. Of bytes
        VmSnapshot.from_bytes() makes the snapshot.
        """
        return Vm(self, await self._unary(_calls.restore_vm(snapshot, name)))

    def vm(self, name: str) -> Vm:
        """A handle on a VM. No I/O: a VM that does not exist shows when it is used."""
        check_name("VM", name)
        if not name:
            raise InvalidArgument(errno.EINVAL, "name is empty; vms() lists the VMs that there are")
        return Vm(self, name)

    async def vms(self) -> list[VmInfo]:
        """All VMs, ordered by name."""
        return await self._follow(every_vm())

    async def delete_vm(self, name: str) -> None:
        """Removes a VM. Its Sessions and Watches end. NotFound."""
        await self._unary(_calls.delete_vm(), name)
        if (owner := self._owners.pop(name, None)) is not None:
            await owner.close()

    async def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_* number: 0 where irqchipd lacks it."""
        return await self._unary(_calls.check_extension(capability))

    async def close(self) -> None:
        """Closes the connection: its Sessions and Watches end."""
        self._peer.closed = True
        for connection in (self._first, *self._lasting.close()):
            await connection.channel.close()
        if self._closing:
            await asyncio.wait(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.target}{', closed' if self._peer.closed else ''}>"

    async def _follow(self, steps: Steps[T]) -> T:
        """Makes the calls that `steps` asks for, and returns what it makes of them."""
        try:
            call, vm = next(steps)
            while True:
                try:
                    response = await self._unary(call, vm)
                except IrqchipError as error:
                    call, vm = steps.throw(error)
                else:
                    call, vm = steps.send(response)
        except StopIteration as end:
            made: T = end.value
            return made

    async def _unary(self, call: Call[T], vm: str = "") -> T:
        request, timeout = call.request_for(vm), time_allowed([call], self.timeout)
        self._check()
        try:
            if call.is_halt:
                return call.parse(
                    await self._lasting_call(lambda rpcs: getattr(rpcs, call.method)(request, timeout=timeout))
                )
            return call.parse(await getattr(self._rpcs, call.method)(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.target, closed=self._peer.closed) from error
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            raise client_closed() from None

    def _session(self, core: SessionCore) -> Session:
        self._check()
        return Session(lambda requests: self._lasting_call(lambda rpcs: rpcs.Session(requests)), core, self._peer)

    def _lasting_call(self, begin: Callable[[IrqchipServiceAsyncStub], LastingCall]) -> LastingCall:
        """Begins a call that lasts, over a channel of those."""
        self._check()
        connection = self._lasting.take()
        try:
            call = begin(connection.rpcs)
        except BaseException:
            self._give_back(connection)
            raise
        call.add_done_callback(partial(self._give_back, connection))
        return call

    def _give_back(self, connection: _Connection, _call: object = None) -> None:
        if self._lasting.give_back(connection):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # It has ended, and a call that was left is collected.
                return
            closing = loop.create_task(connection.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _connect(self) -> _Connection:
        channel = grpc.aio.insecure_channel(self._target.address, options=self._target.channel_options)
        return _Connection(channel, IrqchipServiceStub(channel))

    def _check(self) -> None:
        if self._peer.closed:
            raise client_closed()
        self._target.check()


class Vm(Machine):
    """A VM. Every call raises NotFound where there is none of its name."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client

    def __repr__(self) -> str:
        return f"<Vm {self.name!r} of {self._client.target}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(NotFound, Unavailable):  # As somebody else deleted it, or the daemon has gone.
            await self.delete()

    async def info(self) -> VmInfo:
        """Its irqchip, its vCPUs, its open Sessions and the lines they hold."""
        return await self._client._follow(whole_vm(self.name))

    async def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: both PICs, the IOAPIC and the default routing; vCPUs created later have a local APIC.

        AlreadyExists where it has one, InvalidArgument once a vCPU exists.
        """
        await self._client._unary(_calls.create_irqchip(), self.name)

    async def create_pit(self, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: an 8254 at ports 40h to 43h that drives GSI 0, and with `speaker` port 61h.

        AlreadyExists where it has one, NotFound without a PIC: also where the irqchip is split.
        """
        await self._client._unary(_calls.create_pit(speaker), self.name)

    async def enable_cap(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP of a KVM_CAP_* number. InvalidArgument for one that irqchipd can't enable."""
        await self._client._unary(_calls.enable_cap(capability, args), self.name)

    async def enable_split_irqchip(self, reserved_gsis: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: local APICs alone; PICs and IOAPIC are the VMM's, whose routes the first GSIs are.

        AlreadyExists where it has an irqchip or a vCPU, InvalidArgument above 4096.
        """
        await self.enable_cap(_calls.KVM_CAP_SPLIT_IRQCHIP, reserved_gsis)

    async def set_boot_cpu_id(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU is the boot CPU, 0 at first.

        Busy once a vCPU exists, InvalidArgument for an id that none can have.
        """
        await self._client._unary(_calls.set_boot_cpu_id(vcpu), self.name)

    async def reset(self, reason: ResetReason = ResetReason.OPERATOR) -> None:
        """Brings chips, local APICs and run states to where they were when they were made.

        Time, routing, Sessions and the levels that they drive stay. All Sessions are told, by a VmReset.
        """
        await self._client._unary(_calls.reset_vm(reason), self.name)

    async def snapshot(self) -> VmSnapshot:
        """Its whole state, for restore_vm(): also what the kernel's structs leave out."""
        return await self._client._unary(_calls.save_vm(), self.name)

    async def delete(self) -> None:
        """Removes the VM. Its Sessions and Watches end."""
        await self._client.delete_vm(self.name)

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
        """Opens a Session, with `async with` or `await`: a line source of its own, batches of operations, and events.

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
        """
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

        What happens within its `async with`, or after `await`, is seen. An unknown name raises InvalidArgument, at
        the latest when read.
        """
        request, client = _calls.watch_request(self.name, tracepoints), self._client
        return Watch(lambda: client._lasting_call(lambda rpcs: rpcs.Watch(request)), client._peer)

    async def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return [await self._client._unary(call, self.name) for call in calls]

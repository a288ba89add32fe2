"""The gRPC edge: a message comes in, the VM does one operation, a message goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import convert, errors
from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.background import Background
from irqchipd.edge.batch import caught_up
from irqchipd.edge.daemon_calls import DAEMON_CALLS, LONG_CALLS, DaemonCall
from irqchipd.edge.gate import Gate
from irqchipd.edge.loop import call, resolve
from irqchipd.edge.messages import execute_unary
from irqchipd.edge.operations import OPERATIONS
from irqchipd.edge.rpc import Context, abort, decoded
from irqchipd.edge.streams import Streams
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Slices
from irqchipd.vm.registry import Registry
from irqchipd.vm.vcpu_state import Outcome

SERVICE = pb.DESCRIPTOR.services_by_name["IrqchipService"]


class GrpcService:
    """The RPCs of IrqchipService, all on one event loop."""

    def __init__(self, registry: Registry, limits: Limits, quota: SessionQuota) -> None:
        self._registry = registry
        self._gate = Gate()
        self._streams = Streams(registry, limits, quota, self._gate)
        self._halts: set[asyncio.Future[Outcome]] = set()
        self._stopping = False
        self._background = Background()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The handlers that a gRPC server serves, by method name."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            if method.name == "Session":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._streams.session)
            elif method.name == "Watch":
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._streams.watch)
            elif method.name == "Halt":
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._halt)
            else:
                classes = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(method.name, *classes))
        return handlers

    async def stop(self, timeout: float) -> None:
        """End every stream and halt with a status, also later ones. Wait at most this many seconds for them."""
        self._stopping = True
        self._streams.end()
        for ended in self._halts:
            resolve(ended, errors.STOPPING)
        deadline = asyncio.get_running_loop().time() + timeout
        while (self._streams or self._halts) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the thread, after stop()."""
        self._background.close()

    # Unary calls.

    def _unary(
        self, method: str, request_class: type[Message], response_class: type[Message]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """The handler of a unary RPC: a call of the daemon's own, or the operation of the same name."""
        daemon_call = DAEMON_CALLS.get(method)
        long_call = LONG_CALLS.get(method)
        operation = _snake_case(method)

        def execute(own: DaemonCall, request: Message) -> bytes:
            response = response_class()
            own(self._registry, request, response)
            return response.SerializeToString()

        def execute_long(own: DaemonCall, data: bytes) -> bytes:
            return execute(own, decoded(request_class, data))

        def work(vm: Vm, request: Any) -> Slices[bytes]:
            response = response_class()
            yield from execute_unary(OPERATIONS[operation], vm, request, response)
            return response.SerializeToString()

        async def answer(data: bytes) -> bytes:
            if long_call is not None:
                # RestoreVm and ListVms belong to no VM: each waits only for calls of its own kind.
                holder = method if method != "SaveVm" else self._share_of(await self._gate.decode(request_class, data))
                return await self._background.run(holder, partial(execute_long, long_call, data))
            request: Any = await self._gate.decode(request_class, data)
            if daemon_call is not None:
                async with self._gate.piece(self._share_of(request)):
                    return execute(daemon_call, request)
            vm = self._registry.get(request.vm)
            return await self._gate.run(vm.share, work(vm, request))

        async def handle(data: bytes, context: Context) -> bytes:
            try:
                return await answer(data)
            except Exception as error:
                refused = errors.refusal(error)
            del data  # see abort
            return await abort(context, refused)

        return handle

    def _share_of(self, request: Any) -> object:
        """The holder that is charged for a call of the daemon's own: the VM's share, or None before there is a VM."""
        try:
            return self._registry.get(getattr(request, "vm", "")).share
        except VmError:
            return None

    async def _halt(self, data: bytes, context: Context) -> bytes:
        """Halt, the only unary RPC that waits."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Outcome] = loop.create_future()
        self._halts.add(ended)
        try:
            request = await self._gate.decode(pb.HaltRequest, data)
            if self._stopping:
                raise errors.STOPPING
            vm = self._registry.get(request.vm)
            await self._gate.run(vm.share, caught_up(vm))
            async with self._gate.piece(vm.share):
                done = partial(call, loop, resolve, ended)
                halt = vm.halt(request.vcpu, done, request.interrupts_masked, request.timeout_ns)
            try:
                return convert.outcome_to(await ended).SerializeToString()
            except BaseException:  # the call was cancelled: give back what the halt took
                vm.abandon(halt)
                raise
        except Exception as error:
            await abort(context, errors.refusal(error))
        finally:
            self._halts.discard(ended)


def _snake_case(method: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in method)[1:]

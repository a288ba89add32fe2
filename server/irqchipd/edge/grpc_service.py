"""The gRPC edge: message in, one call of the core, message out."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import convert, errors
from irqchipd.edge.executor import Awaited, execute
from irqchipd.edge.outbound import TraceQueue
from irqchipd.edge.session import OPENING_PATIENCE, NoEventfds, Places, Session, following, not_opened, opening
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.limits import Limits
from irqchipd.vm.capabilities import check_extension
from irqchipd.vm.cpu import Outcome
from irqchipd.vm.errors import VmError, deleted, invalid
from irqchipd.vm.regions import Access, Forwarded
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["IrqchipService"]
Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")

MAX_CAP_ARGS = 4  # of struct kvm_enable_cap


class GrpcService:
    """The RPCs of IrqchipService, all on one event loop."""

    def __init__(self, registry: Registry, limits: Limits, places: Places) -> None:
        self._registry = registry
        self._limits = limits
        self._places = places
        self._streams: set[_Stream] = set()
        self._halts: set[asyncio.Future[Outcome]] = set()
        self._stopping = False
        self._daemon_calls: dict[str, Callable[[Any, Any], None]] = {
            "CreateVm": self._create_vm,
            "DeleteVm": self._delete_vm,
            "ListVms": self._list_vms,
            "GetVm": self._get_vm,
            "ResetVm": self._reset_vm,
            "SaveVm": self._save_vm,
            "RestoreVm": self._restore_vm,
            "CheckExtension": self._check_extension,
            "EnableCap": self._enable_cap,
            "CreateIrqchip": self._create_irqchip,
            "CreatePit": self._create_pit,
        }

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given to serve."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            request_class = GetMessageClass(method.input_type)
            response_class = GetMessageClass(method.output_type)
            arguments: dict[str, Any] = {
                "request_deserializer": _decoder(request_class),
                "response_serializer": response_class.SerializeToString,
            }
            if method.name == "Session":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._session, **arguments)
            elif method.name == "Watch":
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._watch, **arguments)
            else:
                unary = self._halt if method.name == "Halt" else self._unary(method.name, response_class)
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(unary, **arguments)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    async def stop(self, patience: float) -> None:
        """End every stream and halt with a status, new ones too, and wait so many seconds for them to be gone."""
        self._stopping = True
        for stream in self._streams:
            stream.end(errors.STOPPING)
        for ended in self._halts:
            _resolve(ended, errors.STOPPING)
        deadline = asyncio.get_running_loop().time() + patience
        while (self._streams or self._halts) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    # Unary calls.

    def _unary(self, method: str, response_class: type[Message]) -> Callable[[Any, Context], Awaitable[Message]]:
        """The handler of a unary call: one of the daemon's own, or the operation of the same name."""
        daemon_call = self._daemon_calls.get(method)
        operation = _snake_case(method)

        async def handle(request: Any, context: Context) -> Message:
            response = response_class()
            refused: VmError | None = None
            try:
                _check_decoded(request)
                if daemon_call is not None:
                    daemon_call(request, response)
                else:
                    try:
                        execute(operation, self._registry.get(request.vm), request, response)
                    except Forwarded as forwarded:
                        await _answered(forwarded.access)
                        convert.answer_to(forwarded.access, response)
            except Exception as error:
                refused = errors.refusal(error)
            if refused is not None:
                del request  # see _abort
                await _abort(context, refused)
            return response

        return handle

    def _create_vm(self, request: pb.CreateVmRequest, response: pb.CreateVmResponse) -> None:
        if request.clock not in pb.ClockKind.values():
            raise invalid(f"clock {request.clock} is none: {pb.CLOCK_KIND_REAL} real, {pb.CLOCK_KIND_VIRTUAL} virtual")
        virtual = request.clock == pb.CLOCK_KIND_VIRTUAL
        response.vm = self._registry.create(request.vm, virtual=virtual, tsc_khz=request.tsc_khz).name

    def _delete_vm(self, request: pb.DeleteVmRequest, response: pb.DeleteVmResponse) -> None:
        self._registry.delete(request.vm)

    def _list_vms(self, request: pb.ListVmsRequest, response: pb.ListVmsResponse) -> None:
        response.vms.extend(convert.vm_to(vm.describe()) for vm in self._registry.all())

    def _get_vm(self, request: pb.GetVmRequest, response: pb.GetVmResponse) -> None:
        response.vm.CopyFrom(convert.vm_to(self._registry.get(request.vm).describe()))

    def _reset_vm(self, request: pb.ResetVmRequest, response: pb.ResetVmResponse) -> None:
        self._registry.get(request.vm).reset()

    def _save_vm(self, request: pb.SaveVmRequest, response: pb.SaveVmResponse) -> None:
        response.snapshot.CopyFrom(snapshot_to(self._registry.get(request.vm).save()))

    def _restore_vm(self, request: pb.RestoreVmRequest, response: pb.RestoreVmResponse) -> None:
        response.vm = self._registry.restore(request.vm, snapshot_from(request.snapshot)).name

    def _check_extension(self, request: pb.CheckExtensionRequest, response: pb.CheckExtensionResponse) -> None:
        response.value = check_extension(request.capability)

    def _enable_cap(self, request: pb.EnableCapRequest, response: pb.EnableCapResponse) -> None:
        vm = self._registry.get(request.vm)
        if len(request.args) > MAX_CAP_ARGS:
            raise invalid(f"there are {len(request.args)} args; at most {MAX_CAP_ARGS} are allowed")
        missing = MAX_CAP_ARGS - len(request.args)
        vm.enable_cap(request.capability, request.flags, (*request.args, *[0] * missing))

    def _create_irqchip(self, request: pb.CreateIrqchipRequest, response: pb.CreateIrqchipResponse) -> None:
        self._registry.get(request.vm).create_irqchip()

    def _create_pit(self, request: pb.CreatePitRequest, response: pb.CreatePitResponse) -> None:
        self._registry.get(request.vm).create_pit(request.flags)

    async def _halt(self, request: Any, context: Context) -> pb.HaltResponse:
        """Halt, the one unary call that waits."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Outcome] = loop.create_future()
        self._halts.add(ended)
        try:
            _check_decoded(request)
            if self._stopping:
                raise errors.STOPPING
            vm = self._registry.get(request.vm)
            done = partial(_call, loop, _resolve, ended)
            halt = vm.halt(request.vcpu, done, request.interrupts_masked, request.timeout_ns)
            try:
                return convert.outcome_to(await ended)
            except BaseException:  # the call has been cancelled, the halt, if it has ended too, for nothing
                vm.abandon(halt)
                raise
        except Exception as error:
            await _abort(context, errors.refusal(error))
        finally:
            self._halts.discard(ended)

    # Streams.

    async def _session(self, requests: object, context: Context) -> None:
        await self._serve(context, lambda stream: self._run_session(context, stream))

    async def _run_session(self, context: Context, stream: _Stream) -> None:
        try:
            message = await asyncio.wait_for(context.read(), OPENING_PATIENCE)
        except TimeoutError:
            raise not_opened() from None
        if message is grpc.aio.EOF:
            return
        _check_decoded(message)
        opened = opening(message)
        session = Session(
            self._registry, self._limits, opened, stream.wake, lambda: stream.end(deleted(opened.vm)), NoEventfds()
        )
        writing = asyncio.Lock()  # the transport takes one message at a time

        async def send(message: object) -> None:
            async with writing:
                await context.write(message)

        async def execute_batches() -> None:
            # A client that does not read its results is not read from: the stream's flow control bounds the queue.
            while (message := await context.read()) is not grpc.aio.EOF:
                _check_decoded(message)
                answer = await _in_slices(session.execute(following(message)))
                if answer is not None:
                    await send(answer)
                else:  # it halts; but if the client reads nothing, it is the last
                    async with writing:
                        pass

        async def send_what_happens() -> None:
            while True:
                await stream.woken()
                while (message := session.take()) is not None:
                    await send(message)

        try:
            await _begin(send(pb.SessionResponse(opened=session.opened())))
            await _first_of(execute_batches(), send_what_happens())
        finally:
            session.close()

    async def _watch(self, request: Any, context: Context) -> None:
        await self._serve(context, lambda stream: self._run_watch(request, context, stream))

    async def _run_watch(self, request: Any, context: Context, stream: _Stream) -> None:
        _check_decoded(request)
        vm = self._registry.get(request.vm)
        queue = TraceQueue(request.tracepoints, self._limits.queued_events, stream.wake)
        vm.attach(queue, lambda: stream.end(deleted(request.vm)))
        try:
            # The head tells the client that from here on nothing is missed.
            await _begin(context.send_initial_metadata(()))
            while True:
                await stream.woken()
                while (message := queue.take()) is not None:
                    await context.write(message)
        finally:
            vm.detach(queue)

    async def _serve(self, context: Context, work: Callable[[_Stream], Coroutine[Any, Any, None]]) -> None:
        """Serve a stream until its work is done, the client leaves, or the stream is ended with an error."""
        stream = _Stream()
        try:
            if self._stopping:
                raise errors.STOPPING
            self._places.take()
            self._streams.add(stream)
            try:
                await _first_of(stream.ended(), work(stream))
            finally:
                self._places.free()
        except VmError as error:
            await _abort(context, error)
        finally:
            self._streams.discard(stream)


class _Stream:
    """What the rest of the daemon does to an open stream; wake and end may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._something = asyncio.Event()
        self._end: asyncio.Future[VmError] = self._loop.create_future()

    def wake(self) -> None:
        """There is something to send."""
        _call(self._loop, self._something.set)

    def end(self, error: VmError) -> None:
        """End it with a status."""
        _call(self._loop, _resolve, self._end, error)

    async def woken(self) -> None:
        """Wait for wake()."""
        await self._something.wait()
        self._something.clear()

    async def ended(self) -> None:
        """Wait for end(), and raise its error."""
        raise await self._end


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Have a loop call back, from any thread."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed: there is nobody left to tell
        log.debug("a stream was woken after the end")


def _resolve(future: asyncio.Future[_T], result: _T) -> None:
    """The first result of a future counts."""
    if not future.done():
        future.set_result(result)


async def _in_slices(work: Generator[Awaited, None, _T]) -> _T:
    """Do some work between whose slices others have their turn."""
    while True:
        try:
            access = next(work)
        except StopIteration as done:
            result: _T = done.value
            return result
        await (asyncio.sleep(0) if access is None else _answered(access))


async def _answered(access: Access) -> None:
    """Wait until an access is answered."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()
    access.when_answered(lambda: _call(loop, _resolve, answered, None))
    await answered


async def _begin(sending: Coroutine[Any, Any, None]) -> None:
    """Send the first of a stream whole, even if cancelled: gRPC would else send the head again before a status."""
    task = asyncio.ensure_future(sending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=1.0)
        raise


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run until the first is done, or fails, and cancel the others."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Undecodable:
    """Stands for bytes that are not the message they should be."""


def _decoder(message_class: type[Message]) -> Callable[[bytes], Message | _Undecodable]:
    # gRPC answers a failing deserializer with an error that says nothing, so ours does not fail.
    def decode(data: bytes) -> Message | _Undecodable:
        try:
            return message_class.FromString(data)
        except DecodeError:
            return _Undecodable()

    return decode


def _check_decoded(message: object) -> None:
    if isinstance(message, _Undecodable):
        raise VmError(errno.EBADMSG, "these bytes are not the message that this call takes")


async def _abort(context: Context, error: VmError) -> NoReturn:
    # gRPC's context keeps what abort raises, and with it the frames on its way, until the garbage collector finds them:
    # none of them is to have a large message.
    error.__traceback__ = error.__context__ = None
    trailing = ((errors.DETAILS_KEY, errors.details(error)),)
    await context.abort(errors.STATUS_CODES[error.number], error.message, trailing)
    raise AssertionError("abort raises")


def _snake_case(method: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in method)[1:]

"""The worker that sends almost valid messages over gRPC: every unary call, Sessions, and Watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from random import Random

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from irqchip.v1 import irqchip_pb2 as pb
from tests.fuzz.findings import Report, check_message, check_status
from tests.fuzz.machines import CHANNEL_OPTIONS, PATIENCE, Machines
from tests.fuzz.messages import Messages
from tests.fuzz.mutation import mutate

SERVICE = pb.DESCRIPTOR.services_by_name["IrqchipService"]
METHODS = {method.name: method for method in SERVICE.methods}
UNARY = [name for name in METHODS if name not in ("Session", "Watch")]
# Calls that create or delete VMs are rarer than calls that use them.
RARE = {"CreateVm", "RestoreVm", "DeleteVm", "ListVms", "SaveVm", "Halt"}
EPISODE = 2000  # messages, before the VMs are replaced
WINDOW = 48  # calls in flight
STREAMS = 6
A_STREAM = 40  # messages per Session, at most
HALT = 0.02  # seconds until the fuzzer cancels a halt
STREAM = 0.4
MUTATED = 0.5

RawCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


class GrpcFuzzer:
    """Sends over one channel, one episode at a time."""

    def __init__(self, target: str, prefix: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._machines = Machines(target, prefix)
        self._calls: dict[str, RawCall] = {
            name: self._channel.unary_unary(f"/{SERVICE.full_name}/{name}", None, None) for name in UNARY
        }
        self._session: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            f"/{SERVICE.full_name}/Session", None, None
        )
        self._watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{SERVICE.full_name}/Watch", None, None
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._channel.close()
        self._machines.close()

    async def run(self, seed: str, count: int, report: Report) -> None:
        """Send `count` messages, which the seed determines."""
        begun, episode = report.sent, 0
        while report.sent - begun < count:
            size = min(EPISODE, count - (report.sent - begun))
            await self._episode(f"{seed}/{episode}", size, report)
            episode += 1

    async def _episode(self, name: str, count: int, report: Report) -> None:
        # Findings must be reproducible: messages depend on nothing but the seed.
        snapshot = self._machines.make(name)
        random = Random(name)
        messages = Messages(random, self._machines.names)
        end = report.sent + count
        try:
            while report.sent < end:
                left = end - report.sent
                if random.random() < 0.6:
                    await self._unary(random, messages, snapshot, min(4 * WINDOW, left), report)
                else:
                    await self._streams(random, messages, left, report)
        finally:
            self._machines.delete()

    # Unary calls.

    async def _unary(
        self, random: Random, messages: Messages, snapshot: pb.VmSnapshot, count: int, report: Report
    ) -> None:
        made = [_request(random, messages, snapshot) for _ in range(count)]
        report.sent += count
        places = asyncio.Semaphore(WINDOW)

        async def call(name: str, request: bytes) -> None:
            async with places:
                await self._call(name, request, report)

        await asyncio.gather(*(call(name, request) for name, request in made))

    async def _call(self, name: str, request: bytes, report: Report) -> None:
        patience = HALT if name == "Halt" else PATIENCE
        call = self._calls[name](request, timeout=patience)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED and patience == PATIENCE:
                report.found("never-answered", request, name)
            check_status(report, error, request, name)
            return
        report.outcomes["OK"] += 1
        try:
            GetMessageClass(METHODS[name].output_type).FromString(answer)
        except DecodeError:
            report.found("no-answer", request, name)

    # Streams.

    async def _streams(self, random: Random, messages: Messages, count: int, report: Report) -> None:
        """Run several Sessions and Watches at once."""
        tasks: list[Awaitable[None]] = []
        while count > 0 and len(tasks) < STREAMS:
            if random.random() < 0.2:
                request = messages.make(pb.WatchRequest.DESCRIPTOR).SerializeToString()
                if random.random() < 0.2:
                    request = mutate(random, request)
                tasks.append(self._watching(request, report))
                report.sent += 1
                count -= 1
            else:
                sent = session_messages(random, messages, min(A_STREAM, count))
                tasks.append(self._in_session(sent, random.random() < 0.5, report))
                report.sent += len(sent)
                count -= len(sent)
        await asyncio.gather(*tasks)

    async def _watching(self, request: bytes, report: Report) -> None:
        call = self._watch(request, timeout=STREAM / 2)
        try:
            async for received in call:
                report.outcomes[pb.WatchResponse.FromString(received).WhichOneof("message") or "nothing"] += 1
        except grpc.aio.AioRpcError as error:
            check_status(report, error, request, "Watch")
        except DecodeError:
            report.found("no-WatchResponse", request, "Watch")

    async def _in_session(self, sent: Sequence[bytes], abrupt: bool, report: Report) -> None:
        """Send all messages at once, then end the Session or stay silent."""

        async def requests() -> AsyncIterator[bytes]:
            for message in sent:
                yield message
            if abrupt:
                await asyncio.sleep(STREAM)

        call = self._session(requests(), timeout=STREAM)
        whole = b"".join(sent)
        try:
            async for received in call:
                check_message(report, received, whole, "Session")
        except grpc.aio.AioRpcError as error:
            check_status(report, error, whole, "Session")
        except asyncio.CancelledError:  # raised by grpc.aio itself when it writes to a stream that has just ended
            report.outcomes["cancelled by grpc.aio"] += 1


def _request(random: Random, messages: Messages, snapshot: pb.VmSnapshot) -> tuple[str, bytes]:
    name = random.choice(UNARY)
    if name in RARE and random.random() < 0.5:
        name = random.choice(UNARY)
    if name == "RestoreVm" and random.random() < 0.8:
        return name, restoring(random, messages, snapshot)
    if name == "DeleteVm" and random.random() < 0.9:  # the others are still needed
        return name, pb.DeleteVmRequest(vm=messages.vms[-1]).SerializeToString()
    return name, _mutated(random, messages.make(METHODS[name].input_type))


def restoring(random: Random, messages: Messages, snapshot: pb.VmSnapshot) -> bytes:
    """A RestoreVm request with a VM's slightly changed state."""
    request = pb.RestoreVmRequest(vm=random.choice((messages.vms[-1], "")), snapshot=snapshot)
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        messages.alter(request.snapshot)
    encoded = request.SerializeToString()
    return mutate(random, encoded) if random.random() < 0.3 else encoded


def session_messages(random: Random, messages: Messages, count: int) -> list[bytes]:
    """The messages of one client: mostly an opening first, then any message."""
    first = messages.opening() if random.random() < 0.95 else messages.make(pb.SessionRequest.DESCRIPTOR)
    made = [first.SerializeToString()]
    # A malformed message ends the Session, and messages after it are not read.
    spoilt = random.choice((0.0, 0.0, 0.05, 0.3))
    for _ in range(random.randint(0, count - 1)):
        message = messages.batch(12) if random.random() < 0.9 else messages.make(pb.SessionRequest.DESCRIPTOR)
        made.append(message.SerializeToString())
        if random.random() < spoilt:
            made[-1] = mutate(random, made[-1])
    return made


def _mutated(random: Random, message: Message) -> bytes:
    encoded = message.SerializeToString()
    return mutate(random, encoded) if random.random() < MUTATED else encoded

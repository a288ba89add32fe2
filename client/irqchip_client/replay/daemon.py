"""Traces against a daemon: each on a VM of its own, through a Session, in batches, several traces at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import InterruptSource, IrqchipError, MpState, MsiRoute, PinRoute, aio, ops
from irqchip_client.ops import Call

from . import arm64_daemon
from .traces import Done, Mismatch, Trace, as_expected
from .x86 import LAPIC_REGISTERS, LAPIC_VECTORS, msr_answer, pit_answer

VmCall = Callable[..., Coroutine[Any, Any, Any]]

# Well below the daemon's limit on messages and results (irqchipd --max-message).
BATCH_BYTES = 1 << 18
# The results that are large.
RESULT_BYTES = {"get_irqchip": 1 << 9, "get_lapic": 1 << 11, "get_pit": 1 << 9}


def replay_all(target: str | None, jobs: int, traces: Sequence[Trace], done: Done) -> None:
    """Runs traces to their ends, `jobs` of them at once, and calls `done` after each. Raises IrqchipError."""
    x86 = [trace for trace in traces if trace.gic is None]
    if x86:
        asyncio.run(_replay_all(target, jobs, x86, done))
    if len(x86) < len(traces):
        arm64_daemon.replay_all(target, jobs, [trace for trace in traces if trace.gic is not None], done)


async def _replay_all(target: str | None, jobs: int, traces: Sequence[Trace], done: Done) -> None:
    prefix = f"replay-{secrets.token_hex(4)}-"
    left = iter(enumerate(traces, 1))

    async def work(client: aio.Client) -> None:
        for number, trace in left:
            done(trace, await _replay(client, f"{prefix}{number}", trace))

    async with aio.connect(target) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(jobs):
                    group.create_task(work(client))
        except ExceptionGroup as failures:  # The first failure has cancelled the other traces.
            raise failures.exceptions[0] from None
        finally:
            await _sweep(client, prefix)


async def _replay(client: aio.Client, name: str, trace: Trace) -> list[Mismatch]:
    vm = await client.create_vm(name, virtual_clock=True)  # No answer depends on the time.
    await vm.create_irqchip()
    async with vm.session("irqchipctl replay") as session:
        for vcpu in range(trace.vcpus):
            await session.run([ops.create_vcpu(vcpu), ops.set_mp_state(vcpu, MpState.RUNNABLE)])
        answers = await _Pipeline(vm, session).run(trace)
    await vm.delete()
    return [
        Mismatch(trace, number, actual)
        for number, (operation, actual) in enumerate(zip(trace.operations, answers, strict=True))
        if not as_expected(operation.expected, actual)
    ]


async def _sweep(client: aio.Client, prefix: str) -> None:
    """Deletes the VMs of traces that were cut short, by Ctrl-C say: even a VM whose creation was not answered."""
    with suppress(IrqchipError):
        for vm in await client.vms():
            if vm.name.startswith(prefix):
                await client.delete_vm(vm.name)


class _Pipeline:
    """A trace's operations in batches, which follow each other without waiting for answers."""

    def __init__(self, vm: aio.Vm, session: aio.Session) -> None:
        self._vm = vm
        self._session = session
        self._calls: list[Call[Any]] = []
        self._bytes = 0
        self._sent: list[asyncio.Future[list[Any]]] = []

    async def run(self, trace: Trace) -> list[Any]:
        """The answers, in the traces' form."""
        for name, arguments, _ in trace.operations:
            if name == "ack_lapic":
                await self._ack_lapic(*arguments)
            elif name in VM_CALLS:
                await self._alone(VM_CALLS[name], *arguments)
            else:
                await self._add(CALLS[name](*arguments))
        await self._send()
        return [
            f"-{answer.reason}" if isinstance(answer, IrqchipError) else answer
            for answers in await asyncio.gather(*self._sent)
            for answer in answers
            if not isinstance(answer, _Taken)  # The KVM_SET_LAPIC that follows has its answer.
        ]

    async def _ack_lapic(self, vcpu: int) -> None:
        """As it was recorded, for KVM_SET_LAPIC's side effects. The new state depends on the state that is read."""
        await self._add(_answering(ops.get_lapic(vcpu), _take))
        await self._send()
        taken = (await self._sent[-1])[-1]
        if isinstance(taken, _Taken):
            await self._add(_answering(ops.set_lapic(vcpu, taken.page), lambda _: taken.vector))

    async def _alone(self, call: VmCall, *arguments: Any) -> None:
        """Makes a call on the VM: it waits for the operations before it, and those after it wait for it."""
        await self._send()
        if self._sent:
            await self._sent[-1]
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        try:
            answer.set_result([await call(self._vm, *arguments)])
        except IrqchipError as error:
            answer.set_result([error])
        self._sent.append(answer)

    async def _add(self, call: Call[Any]) -> None:
        self._calls.append(call)
        self._bytes += call.request.ByteSize() + RESULT_BYTES.get(call.operation, 0)
        if len(self._calls) >= self._session.max_operations or self._bytes >= BATCH_BYTES:
            await self._send()

    async def _send(self) -> None:
        if not self._calls:
            return
        sent = await self._session.submit(self._calls, return_errors=True)
        # Every result is retrieved, even if another task fails first: otherwise asyncio complains on standard error.
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._sent.append(sent)
        self._calls = []
        self._bytes = 0


def _answering(call: Call[Any], answer: Callable[[Any], Any]) -> Call[Any]:
    """The same call, with its response in the traces' form."""
    return Call(call.operation, call.request, answer)


def _route(gsi: int, to: str, *where: int) -> PinRoute | MsiRoute:
    if to == "msi":
        return MsiRoute(gsi, *where)
    chip, pin = where
    return PinRoute(gsi, chip, pin)  # type: ignore[arg-type]  # The daemon refuses an invalid chip.


def _lapic_answer(response: pb.GetLapicResponse) -> dict[str, Any]:
    answer: dict[str, Any] = {name: getattr(response.lapic, field) for name, field in LAPIC_REGISTERS.items()}
    for name in LAPIC_VECTORS:
        answer[name] = list(getattr(response.lapic, name))
    return answer


def _msr_answer(response: pb.MsrReadResponse | pb.MsrWriteResponse) -> int | str | None:
    value = response.data if isinstance(response, pb.MsrReadResponse) else None
    return msr_answer(response.claimed, response.fault, value)


# The call for each operation, except ack_lapic, which is two calls, and those of VM_CALLS.
CALLS: dict[str, Callable[..., Call[Any]]] = {
    "pio_read": lambda vcpu, port, size: _answering(ops.pio_read(vcpu, port, size), lambda r: r.data),
    "pio_write": lambda vcpu, port, size, value: _answering(ops.pio_write(vcpu, port, value, size), lambda _: None),
    "mmio_read": lambda vcpu, address, size: _answering(ops.mmio_read(vcpu, address, size), lambda r: r.data),
    "mmio_write": lambda vcpu, at, size, value: _answering(ops.mmio_write(vcpu, at, value, size), lambda _: None),
    "irq_line": lambda gsi, level: ops.irq_line(gsi, bool(level)),
    "signal_msi": lambda address, data, flags: _answering(
        ops.signal_msi(address, data, flags),
        lambda r: "-EPERM" if r.status == -1 else r.status,  # An ioctl that returns -1.
    ),
    "set_gsi_routing": lambda table: _answering(ops.set_gsi_routing([_route(*entry) for entry in table]), lambda _: 0),
    "take_extint": lambda vcpu: _answering(
        ops.ack_interrupt(vcpu, InterruptSource.PIC), lambda r: r.interrupt.vector if r.HasField("interrupt") else None
    ),
    "get_irqchip": lambda chip: _answering(ops.get_irqchip(chip), lambda r: r.kvm_struct.hex()),
    "set_irqchip": lambda chip, state: _answering(ops.set_irqchip(chip, bytes.fromhex(state)), lambda _: 0),
    "get_lapic": lambda vcpu: _answering(ops.get_lapic(vcpu), _lapic_answer),
    "get_pit": lambda: _answering(ops.get_pit(), lambda r: pit_answer(r.pit.channels, r.pit.flags)),
    "msr_read": lambda vcpu, msr: _answering(ops.msr_read(vcpu, msr), _msr_answer),
    "msr_write": lambda vcpu, msr, value: _answering(ops.msr_write(vcpu, msr, value), _msr_answer),
}


async def _create_pit(vm: aio.Vm, flags: int) -> int:
    await vm.create_pit(flags)  # type: ignore[arg-type]  # Flags but 0 and 1 are the daemon's to refuse.
    return 0


# The operations that no Session has: functions that make each on the VM, and return the answer in the traces' form.
VM_CALLS: dict[str, VmCall] = {"create_pit": _create_pit}

_SVR_ENABLED = 1 << 8
_ISR, _IRR = 0x100, 0x200  # Offsets in the register page: 256 bits each, 32 in every 16 bytes.


@dataclass(frozen=True, slots=True)
class _Taken:
    """A vector that a CPU accepts, and the register page with it moved from IRR to ISR."""

    vector: int
    page: bytes


def _take(response: pb.GetLapicResponse) -> _Taken | None:
    """The CPU's acceptance rule: the highest vector requested, if its class is above TPR's and that in service.

    As it was recorded: a local APIC that software has disabled gives nothing.
    """
    lapic = response.lapic
    requested = max(lapic.irr, default=0)
    threshold = max(lapic.tpr & 0xF0, max(lapic.isr, default=0) & 0xF0)
    if requested & 0xF0 <= threshold or not lapic.svr & _SVR_ENABLED:
        return None
    page = bytearray(response.kvm_struct)
    at = (requested >> 5) * 0x10 + (requested >> 3 & 3)
    page[_IRR + at] &= ~(1 << (requested & 7)) & 0xFF
    page[_ISR + at] |= 1 << (requested & 7)
    return _Taken(requested, bytes(page))

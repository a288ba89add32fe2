"""arm64's traces against a daemon: each on VMs of its own, through Sessions that can hand over eventfds."""

from __future__ import annotations

import os
import secrets
import select
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Architecture, Client, GicHost, IrqchipError, Session, Vm, _calls, connect, ops
from irqchip_client.ops import Call

from .arm64 import SYSREGS, UNCLAIMED, UNDEFINED
from .traces import Done, Mismatch, Trace, as_expected

DEASSIGN, RESAMPLE = 1, 2  # KVM_IRQFD_FLAG_*
# Operations that no Session has, those that need a descriptor, and KVM_IRQ_LINE: methods of _Player.
ALONE = frozenset(
    (
        *("new_vm", "create_irqchip", "create_device", "device_addr", "check_extension", "irq_line", "set_gsi_routing"),
        *("irqfd", "irqfd_signal", "irqfd_resampled"),
    )
)
PATIENCE = 5.0  # seconds that the daemon has for reading an eventfd


def replay_all(target: str | None, jobs: int, traces: Sequence[Trace], done: Done) -> None:
    """Runs traces to their ends, `jobs` of them at once, and calls `done` after each. Raises IrqchipError."""
    prefix = f"replay-{secrets.token_hex(4)}-"
    with connect(target) as client, ThreadPoolExecutor(jobs) as pool:
        try:
            numbered = enumerate(traces, 1)
            running = [pool.submit(_replay, client, f"{prefix}{number}", trace) for number, trace in numbered]
            for trace, future in zip(traces, running, strict=True):
                done(trace, future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            with suppress(IrqchipError):
                for vm in client.vms():
                    if vm.name.startswith(prefix):
                        client.delete_vm(vm.name)


def _replay(client: Client, name: str, trace: Trace) -> list[Mismatch]:
    assert trace.gic is not None
    with _Player(client, name, trace.gic) as player:
        answers = list(player.play(trace))
    return [
        Mismatch(trace, number, actual)
        for number, (operation, actual) in enumerate(zip(trace.operations, answers, strict=True))
        if not as_expected(operation.expected, actual)
    ]


class _Slot:
    """An eventfd and a resample eventfd, which a trace may make an irqfd."""

    def __init__(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.resamplefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.gsi: int | None = None  # while it is an irqfd

    def close(self) -> None:
        os.close(self.eventfd)
        os.close(self.resamplefd)

    def await_reading(self) -> None:
        """Waits until the daemon has read the eventfd."""
        poll = select.poll()
        poll.register(self.eventfd, select.POLLIN)
        waited = 0.0
        while self.gsi is not None and poll.poll(0) and waited < PATIENCE:
            select.select((), (), (), 0.0005)
            waited += 0.0005


class _Player:
    """A trace's VM, and its operations: those of a Session in batches, the others alone."""

    def __init__(self, client: Client, name: str, gic: int) -> None:
        self._client = client
        self._name = name
        self._host = GicHost(version=gic)
        self._slots: dict[int, _Slot] = {}
        self._open()

    def __enter__(self) -> _Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        self._vm: Vm = self._client.create_vm(
            self._name, architecture=Architecture.ARM64, gic=self._host, virtual_clock=True
        )
        self._session: Session = self._vm.session("irqchipctl replay")

    def _close(self) -> None:
        self._session.close()
        for slot in self._slots.values():
            slot.close()
        self._slots = {}
        self._vm.delete()

    def play(self, trace: Trace) -> Iterator[Any]:
        """The answers, in the traces' form."""
        waiting: list[Call[Any]] = []
        for name, arguments, _ in trace.operations:
            if name in CALLS and len(waiting) < self._session.max_operations:
                waiting.append(CALLS[name](*arguments))
                continue
            yield from self._run(waiting)
            waiting = []
            if name == "state":
                yield self._state(*arguments)
            elif name in ALONE:
                yield self._do(getattr(self, f"_{name}"), *arguments)
            else:
                waiting.append(CALLS[name](*arguments))
        yield from self._run(waiting)

    def _run(self, calls: Sequence[Call[Any]]) -> Iterator[Any]:
        if calls:
            for result in self._session.run(calls, return_errors=True):
                yield f"-{result.reason}" if isinstance(result, IrqchipError) else result

    def _do(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except IrqchipError as error:
            return f"-{error.reason}"

    def _state(self, device: int, blocks: Sequence[Sequence[int]]) -> list[Any]:
        calls = [
            CALLS["get_attr"](device, group, first + step * number, 0)
            for group, first, step, count in blocks
            for number in range(count)
        ]
        most = self._session.max_operations
        answers = (answer for at in range(0, len(calls), most) for answer in self._run(calls[at : at + most]))
        return [[*block[:3], [next(answers) for _ in range(block[3])]] for block in blocks]

    def _new_vm(self) -> int:
        self._close()
        self._open()
        return 0

    def _create_irqchip(self) -> int:
        self._vm.create_irqchip()
        return 0

    def _device_addr(self, number: int, address: int) -> int:
        self._vm.set_device_addr(number, address)
        return 0

    def _create_device(self, kind: int, flags: int) -> int:
        self._vm.create_device(kind, flags)  # type: ignore[arg-type]  # The daemon refuses an unknown type.
        return 0

    def _check_extension(self, whose: str, capability: int) -> int:
        if whose == "vm":
            return self._vm.check_vm_extension(capability)
        return self._client.check_extension(capability, Architecture.ARM64, self._host)

    def _irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE, of the VM and not of the Session: a resampled irqfd also lowers a line that this raised."""
        line = self._vm.line(irq)
        return line.raise_() if level else line.lower()

    def _set_gsi_routing(self, table: Sequence[Sequence[Any]], flags: int) -> int | str:
        if flags:  # No message has a table's flags, because KVM refuses all. But it refuses a dead VM first.
            self._vm.check_vm_extension(0)
            return "-EINVAL"
        request = pb.SetGsiRoutingRequest(entries=[_route(*entry) for entry in table])
        self._session.run([Call("set_gsi_routing", request, lambda _: None)])
        return 0

    def _slot(self, slot: int) -> _Slot:
        if slot not in self._slots:
            self._slots[slot] = _Slot()
        return self._slots[slot]

    def _irqfd(self, slot: int, gsi: int, flags: int) -> int:
        one = self._slot(slot)
        descriptors = [one.eventfd, one.resamplefd] if flags & RESAMPLE and not flags & DEASSIGN else [one.eventfd]
        self._session._transport.run_with_descriptors(_calls.irqfd(gsi, flags), descriptors)
        if not flags & DEASSIGN:
            one.gsi = gsi
        elif one.gsi == gsi:
            one.gsi = None
        return 0

    def _irqfd_signal(self, slot: int) -> int:
        one = self._slot(slot)
        os.eventfd_write(one.eventfd, 1)
        one.await_reading()
        return 0

    def _irqfd_resampled(self, slot: int) -> int:
        self._session.run([ops.get_gsi_routing()])  # waits for the effects of earlier operations
        try:
            return os.eventfd_read(self._slot(slot).resamplefd)
        except BlockingIOError:
            return 0


def _answering(call: Call[Any], answer: Callable[[Any], Any]) -> Call[Any]:
    """The same call, with its result in the traces' form."""
    return Call(call.operation, call.request, lambda response: answer(call.parse(response)))


def _route(gsi: int, to: str | int, *where: Any) -> pb.RoutingEntry:
    if to == "irqchip":
        chip, pin = where
        return pb.RoutingEntry(gsi=gsi, irqchip=pb.IrqchipPin(chip_id=chip, pin=pin))
    if to == "msi":
        address, data, devid = where
        return pb.RoutingEntry(gsi=gsi, msi=pb.Msi(address=address, data=data), flags=int(devid is not None))
    return pb.RoutingEntry(gsi=gsi)  # a type that no message has


def _sysreg_read(access: Any) -> int | str | None:
    if access.fault:
        return UNDEFINED
    return access.data if access.claimed else None


def _zero(_: object) -> int:
    return 0


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


# The operations of a Session: the call that has each one's answer.
CALLS: dict[str, Callable[..., Call[Any]]] = {
    "set_attr": lambda device, group, attr, value: _answering(
        ops.set_device_attr(group, attr, value, device=device), _zero
    ),
    "get_attr": lambda device, group, attr, before: _answering(
        ops.get_device_attr(group, attr, before, device=device), _number
    ),
    "has_attr": lambda device, group, attr: _answering(ops.has_device_attr(group, attr, device=device), _zero),
    "vcpu_set_attr": lambda vcpu, group, attr, value: _answering(
        ops.set_device_attr(group, attr, value, vcpu=vcpu), _zero
    ),
    "vcpu_get_attr": lambda vcpu, group, attr, before: _answering(
        ops.get_device_attr(group, attr, before, vcpu=vcpu), _number
    ),
    "vcpu_has_attr": lambda vcpu, group, attr: _answering(ops.has_device_attr(group, attr, vcpu=vcpu), _zero),
    "create_vcpu": lambda vcpu: _answering(ops.create_vcpu(vcpu), _zero),
    "vcpu_init": lambda vcpu, features, target: _answering(
        ops.vcpu_init(vcpu, features) if target < 0 else ops.vcpu_init(vcpu, features, target), _zero
    ),
    "signal_msi": lambda address, data, flags, _devid: ops.signal_msi(address, data, flags),
    "read": lambda vcpu, address, size: _answering(
        ops.mmio_read(vcpu, address, size), lambda access: access.data if access.claimed else UNCLAIMED
    ),
    "write": lambda vcpu, address, size, value: _answering(
        ops.mmio_write(vcpu, address, value, size), lambda claim: None if claim else UNCLAIMED
    ),
    "mrs": lambda vcpu, register: _answering(ops.sysreg_read(vcpu, SYSREGS[register]), _sysreg_read),
    "msr": lambda vcpu, register, value: _answering(
        ops.sysreg_write(vcpu, SYSREGS[register], value), lambda access: UNDEFINED if access.fault else None
    ),
}

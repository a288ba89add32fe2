"""The core of a Session, without a transport: messages in, messages out."""

import errno
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import (
    EventsDropped,
    GsiAcknowledged,
    GsiMasked,
    GsiResampled,
    Interrupt,
    InterruptPending,
    InterruptSource,
    InvalidArgument,
    IoapicEoi,
    IrqchipError,
    LimitReached,
    NotFound,
    NotReady,
    RegionsLost,
    ResetReason,
    SessionClosed,
    SignalKind,
    Space,
    TimedOut,
    VcpuSignal,
    VmReset,
    ops,
)
from irqchip_client._channels import Peer
from irqchip_client._session import SessionCore

PEER = Peer("unix:///run/irqchipd.sock", 10)


def opened(*, event_buffer: int = 8, max_in_flight: int = 8) -> SessionCore:
    core = SessionCore("demo", "test", [0], event_buffer, max_in_flight)
    core.receive(pb.SessionResponse(opened=pb.SessionOpened(source=3, max_operations=4)))
    return core


def submit(core: SessionCore, *calls: ops.Call[Any], return_errors: bool = False) -> tuple[Future[list[Any]], pb.Batch]:
    future: Future[list[Any]] = Future()
    request, _ = core.submit(calls, future, return_errors)
    assert isinstance(request, pb.SessionRequest)
    return future, request.batch


def answer(core: SessionCore, serial: int, *results: pb.OperationResult, error: pb.Error | None = None) -> None:
    result = pb.BatchResult(serial=serial, results=results, error=error)
    batch = core.receive(pb.SessionResponse(batch_result=result))
    assert batch is not None
    batch.settle()


def status(value: int) -> pb.OperationResult:
    return pb.OperationResult(irq_line=pb.IrqLineResponse(status=value))


def pending(vcpu: int) -> pb.SessionResponse:
    return pb.SessionResponse(event=pb.Event(interrupt_pending=pb.InterruptPending(vcpu=vcpu)))


def nmi(vcpu: int) -> pb.SessionResponse:
    return pb.SessionResponse(
        event=pb.Event(vcpu_signal=pb.VcpuSignal(vcpu=vcpu, signal=pb.Signal(kind=pb.SIGNAL_KIND_NMI)))
    )


def happened(**event: Any) -> pb.SessionResponse:
    return pb.SessionResponse(event=pb.Event(**event))


def woken(vector: int) -> pb.OperationResult:
    taken = pb.Interrupt(vector=vector, source=pb.INTERRUPT_SOURCE_LAPIC)
    return pb.OperationResult(halt=pb.HaltResponse(interrupt=taken))


TIME_IS_UP = pb.OperationResult(halt=pb.HaltResponse(timeout=pb.HaltTimeout()))
REFUSED = pb.Error(code=9, reason="ENXIO", message="no irqchip")


def test_it_opens_with_its_subscriptions_and_learns_its_source() -> None:
    core = SessionCore("demo", "test", [0, 1], 8, 8)
    assert core.open_request().open == pb.SessionOpen(vm="demo", client="test", vcpus=[0, 1])
    assert not core.is_open
    core.receive(pb.SessionResponse(opened=pb.SessionOpened(source=3, max_operations=4)))
    assert (core.is_open, core.source, core.max_operations) == (True, 3, 4)


def test_it_opens_with_its_gsis_and_resumes_a_source() -> None:
    core = SessionCore("demo", "test", [], 8, 8, gsis=[4], resampled_gsis=iter([10, 11]), resume=True)
    opening = pb.SessionOpen(vm="demo", client="test", gsis=[4], resampled_gsis=[10, 11], resume=True)
    assert core.open_request().open == opening
    with pytest.raises(InvalidArgument, match="session"):
        SessionCore("demo", "test", [], 8, 8, gsis=[-1]).open_request()


def test_batches_are_answered_in_order() -> None:
    core = opened()
    first, one = submit(core, ops.irq_line(4, True))
    second, two = submit(core, ops.irq_line(4, False), ops.pio_read(0, 0x20))
    assert one.serial != two.serial
    assert [operation.WhichOneof("operation") for operation in two.operations] == ["irq_line", "pio_read"]
    answer(core, one.serial, status(1))
    assert first.result(0) == [1]
    assert not second.done()
    read = pb.OperationResult(pio_read=pb.PioReadResponse(claimed=True, data=5))
    answer(core, two.serial, status(0), read)
    assert second.result(0)[1].data == 5


def test_the_first_error_is_raised_and_says_where_it_was() -> None:
    core = opened()
    future, batch = submit(core, ops.irq_line(4, True), ops.irq_line(5, True))
    answer(core, batch.serial, status(1), pb.OperationResult(error=REFUSED))
    with pytest.raises(NotReady, match="no irqchip") as caught:
        future.result(0)
    assert caught.value.__notes__ == ["It was operation 1 of the batch, irq_line."]


def test_errors_are_returned_in_their_places_on_request() -> None:
    core = opened()
    future, batch = submit(core, ops.irq_line(4, True), ops.irq_line(5, True), return_errors=True)
    answer(core, batch.serial, pb.OperationResult(error=REFUSED), status(1))
    error, result = future.result(0)
    assert isinstance(error, NotReady)
    assert result == 1


def test_a_refused_batch_fails_even_if_errors_are_to_be_returned() -> None:
    core = opened()
    future, batch = submit(core, ops.irq_line(4, True), return_errors=True)
    answer(core, batch.serial, error=pb.Error(code=8, reason="E2BIG", message="too many"))
    assert isinstance(future.exception(0), LimitReached)


def test_a_batch_is_refused_here_where_it_is_too_long_or_no_operation_and_changes_nothing() -> None:
    core = opened()
    with pytest.raises(LimitReached, match="at most 4 operations, not 5"):
        submit(core, *[ops.irq_line(4, True)] * 5)
    with pytest.raises(InvalidArgument, match="get_vm"):
        submit(core, ops.Call("get_vm", pb.GetVmRequest(), str))
    _, batch = submit(core, ops.irq_line(4, True))
    assert batch.serial == 1


def test_batches_in_flight_are_bounded() -> None:
    core = opened(max_in_flight=1)
    _, batch = submit(core, ops.irq_line(4, True))
    assert not core.has_room
    with pytest.raises(LimitReached, match="1 batches are in flight"):
        submit(core, ops.irq_line(4, True))
    answer(core, batch.serial, status(1))
    assert core.has_room
    submit(core, ops.irq_line(4, True))


def test_halts_are_answered_when_they_end_and_other_batches_in_order() -> None:
    core = opened()
    sleeper, halt = submit(core, ops.pio_write(0, 0x20, 0x20), ops.halt(0))
    first, one = submit(core, ops.irq_line(4, True))
    other_sleeper, other_halt = submit(core, ops.halt(1))
    second, two = submit(core, ops.irq_line(4, False))
    answer(core, one.serial, status(1))
    answer(core, other_halt.serial, woken(0x31))
    answer(core, two.serial, status(2))
    assert [first.result(0), second.result(0)] == [[1], [2]]
    assert other_sleeper.result(0) == [Interrupt(0x31, InterruptSource.LAPIC)]
    assert not sleeper.done()
    answer(core, halt.serial, pb.OperationResult(pio_write=pb.PioWriteResponse(claimed=True)), woken(0x41))
    assert sleeper.result(0) == [True, Interrupt(0x41, InterruptSource.LAPIC)]
    assert core.end(None, PEER) == []


def test_a_batch_with_a_halt_before_its_end_is_not_sent() -> None:
    core = opened()
    for calls in ([ops.halt(0), ops.pio_read(0, 0x20)], [ops.halt(0), ops.halt(0)]):
        with pytest.raises(InvalidArgument, match="halt is the last operation of its batch"):
            submit(core, *calls)
    _, batch = submit(core, ops.halt(0))
    assert batch.serial == 1


def test_a_halt_whose_time_is_up_has_timed_out() -> None:
    core = opened()
    future, batch = submit(core, ops.halt(0, timeout=0.5))
    answer(core, batch.serial, TIME_IS_UP)
    with pytest.raises(TimedOut, match=r"vCPU 0 to take came within 0\.5 s"):
        future.result(0)
    future, batch = submit(core, ops.irq_line(4, True), ops.halt(1, timeout=2), return_errors=True)
    answer(core, batch.serial, status(1), TIME_IS_UP)
    raised, error = future.result(0)
    assert raised == 1
    assert isinstance(error, TimedOut)


def test_the_last_halt_of_each_vcpu_can_be_given_up() -> None:
    core = opened()
    serials = [submit(core, ops.halt(vcpu))[1].serial for vcpu in (0, 1)]
    given_up = [core.give_up(serial) for serial in serials]
    assert [request.halt_given_up.serial for request in given_up if request] == serials
    answer(core, serials[1], woken(0x51))
    submit(core, ops.halt(1))
    assert core.give_up(serials[1]) is None


def test_a_halt_counts_as_a_batch_in_flight() -> None:
    core = opened(max_in_flight=2)
    _, halt = submit(core, ops.halt(0))
    submit(core, ops.irq_line(4, True))
    with pytest.raises(LimitReached, match="2 batches are in flight"):
        submit(core, ops.irq_line(4, True))
    answer(core, halt.serial, woken(0x31))
    assert core.has_room


def test_a_batch_with_a_halt_that_is_refused_whole_fails() -> None:
    core = opened()
    submit(core, ops.irq_line(4, True))
    future, batch = submit(core, ops.halt(0))
    answer(core, batch.serial, error=pb.Error(code=8, reason="E2BIG", message="too many"))
    assert isinstance(future.exception(0), LimitReached)


def test_a_halt_is_answered_once() -> None:
    core = opened()
    _, batch = submit(core, ops.halt(0))
    answer(core, batch.serial, woken(0x31))
    with pytest.raises(IrqchipError, match="an answer to batch 1, which is not next"):
        answer(core, batch.serial, woken(0x31))


@pytest.mark.parametrize(
    "result", [pb.OperationResult(halt=pb.HaltResponse()), status(1), pb.OperationResult()], ids=["none", "other", "-"]
)
def test_an_end_of_a_halt_without_a_reason_leaves_the_batch_to_the_end(result: pb.OperationResult) -> None:
    core = opened()
    future, batch = submit(core, ops.halt(0))
    with pytest.raises(IrqchipError) as caught:
        answer(core, batch.serial, result)
    assert caught.value.errno == errno.EPROTO
    assert [settled.serial for settled in core.end(caught.value, PEER)] == [batch.serial]
    assert not future.done()  # The transport ends the batch.


def test_the_end_fails_those_that_halt_with_the_others_in_the_order_of_sending() -> None:
    core = opened()
    for call in (ops.irq_line(4, True), ops.halt(0), ops.irq_line(4, True), ops.halt(1)):
        submit(core, call)
    batches = core.end(None, PEER)
    assert [batch.serial for batch in batches] == [1, 2, 3, 4]
    assert all(isinstance(batch.outcome, SessionClosed) for batch in batches)
    assert core.end(None, PEER) == []


@given(st.lists(st.sampled_from(["send", "halt", "answer", "wake"]), max_size=60), st.data())
def test_every_batch_is_settled_once_in_any_interleaving(steps: list[str], data: st.DataObject) -> None:
    core = opened(max_in_flight=100)
    sent: dict[int, Future[list[Any]]] = {}
    plain: list[int] = []
    halting: list[int] = []
    for step in steps:
        if step in ("send", "halt"):
            future, batch = submit(core, ops.halt(0) if step == "halt" else ops.irq_line(4, True))
            sent[batch.serial] = future
            (halting if step == "halt" else plain).append(batch.serial)
        elif step == "answer" and plain:
            answer(core, serial := plain.pop(0), status(serial))
            assert sent.pop(serial).result(0) == [serial]
        elif step == "wake" and halting:
            serial = halting.pop(data.draw(st.integers(0, len(halting) - 1)))
            answer(core, serial, woken(serial))
            assert sent.pop(serial).result(0) == [Interrupt(serial, InterruptSource.LAPIC)]
        assert not any(future.done() for future in sent.values())
    assert [batch.serial for batch in core.end(None, PEER)] == sorted(plain + halting)


def test_the_end_fails_what_is_in_flight_and_what_comes_later_with_the_reason() -> None:
    core = opened()
    future, _ = submit(core, ops.irq_line(4, True))
    for batch in core.end(NotFound(errno.ENOENT, "VM 'demo' has been deleted"), PEER):
        batch.settle()
    with pytest.raises(SessionClosed, match="'demo' has ended: VM 'demo' has been deleted") as caught:
        future.result(0)
    assert isinstance(caught.value.__cause__, NotFound)
    with pytest.raises(SessionClosed):
        submit(core, ops.irq_line(4, True))
    with pytest.raises(SessionClosed):
        core.take_event()
    assert core.has_room  # No caller waits for it.
    assert core.has_event


def test_a_closing_session_takes_no_more_but_hears_its_answers() -> None:
    core = opened()
    future, batch = submit(core, ops.irq_line(4, True))
    core.close()
    with pytest.raises(SessionClosed, match="this client closed it"):
        submit(core, ops.irq_line(4, True))
    answer(core, batch.serial, status(1))
    assert future.result(0) == [1]
    assert core.end(None, PEER) == []


def test_closing_an_ended_session_does_not_hide_why_it_ended() -> None:
    core = opened()
    core.end(NotFound(errno.ENOENT, "VM 'demo' has been deleted"), PEER)
    core.close()
    assert "deleted" in core.closed_error().message


def test_a_session_that_was_not_opened_says_why() -> None:
    core = SessionCore("demo", "", [], 8, 8)
    core.end(NotFound(errno.ENOENT, "no VM 'demo'"), PEER)
    assert isinstance(core.open_error(), NotFound)
    core = SessionCore("demo", "", [], 8, 8)
    core.end(None, PEER)
    assert "the daemon ended it" in core.open_error().message


@pytest.mark.parametrize(
    "result",
    [
        pb.BatchResult(serial=2, results=[status(1)]),
        pb.BatchResult(serial=1),
        pb.BatchResult(serial=1, results=[status(1), status(1)]),
        pb.BatchResult(serial=1, results=[pb.OperationResult()]),
        pb.BatchResult(serial=1, results=[pb.OperationResult(get_lapic=pb.GetLapicResponse())]),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error_and_leaves_the_batch_to_the_end(result: pb.BatchResult) -> None:
    core = opened()
    future, _ = submit(core, ops.irq_line(4, True))
    with pytest.raises(IrqchipError) as caught:
        core.receive(pb.SessionResponse(batch_result=result))
    assert caught.value.errno == errno.EPROTO
    for batch in core.end(caught.value, PEER):
        batch.settle()
    assert isinstance(future.exception(0), SessionClosed)


def test_a_batch_that_its_caller_gave_up_is_left_alone() -> None:
    core = opened()
    future, batch = submit(core, ops.irq_line(4, True))
    future.cancel()
    answer(core, batch.serial, status(1))
    assert future.cancelled()


def test_events_are_read_in_the_order_of_arrival() -> None:
    core = opened()
    for message in (nmi(1), pending(0), nmi(0)):
        core.receive(message)
    assert [core.take_event() for _ in range(3)] == [
        VcpuSignal(1, SignalKind.NMI, 0),
        InterruptPending(0),
        VcpuSignal(0, SignalKind.NMI, 0),
    ]
    assert not core.has_event


def test_unread_interrupts_of_a_vcpu_are_one_event() -> None:
    core = opened(event_buffer=1)
    for _ in range(3):
        core.receive(pending(0))
        core.receive(pending(1))
    assert [core.take_event(), core.take_event()] == [InterruptPending(0), InterruptPending(1)]
    assert not core.has_event
    core.receive(pending(0))
    assert core.take_event() == InterruptPending(0)
    assert core.events.dropped == 0


def test_events_dropped_for_lack_of_room_are_counted_in_their_place() -> None:
    core = opened(event_buffer=1)
    for message in (nmi(0), nmi(1), nmi(2), pending(0)):
        core.receive(message)
    core.receive(pb.SessionResponse(event=pb.Event(events_dropped=pb.EventsDropped(count=5))))
    assert core.events.dropped == 7
    events = [core.take_event() for _ in range(4)]
    assert events == [VcpuSignal(0, SignalKind.NMI, 0), EventsDropped(2), InterruptPending(0), EventsDropped(5)]
    core.receive(nmi(3))
    assert core.take_event() == VcpuSignal(3, SignalKind.NMI, 0)


def test_the_buffer_stays_bounded_whatever_comes() -> None:
    core = opened(event_buffer=2)
    for i in range(1000):
        core.receive(nmi(i))
        core.receive(pending(i % 4))
        core.receive(happened(gsi_acknowledged=pb.GsiAcknowledged(gsi=i % 3, count=1)))
        core.receive(happened(gsi_masked=pb.GsiMasked(gsi=i % 3, masked=bool(i % 2))))
        core.receive(happened(ioapic_eoi=pb.IoapicEoi(vcpu=0, vector=i % 5)))
        core.receive(happened(vm_reset=pb.VmReset()))
    assert len(core.events) <= 2 * (2 + 4 + 3 + 3 + 5) + 1


def test_only_the_last_unread_reset_is_kept_behind_earlier_events() -> None:
    core = opened()
    core.receive(happened(vm_reset=pb.VmReset(reason=pb.RESET_REASON_FAULT)))
    core.receive(happened(regions_lost=pb.RegionsLost(space=pb.ADDRESS_SPACE_PIO, address=0x300)))
    core.receive(happened(vm_reset=pb.VmReset(reason=pb.RESET_REASON_GUEST)))
    assert [core.take_event() for _ in range(2)] == [RegionsLost(Space.PIO, 0x300), VmReset(ResetReason.GUEST)]


def test_a_reset_for_an_unknown_reason_is_reported() -> None:
    core = opened()
    core.receive(happened(vm_reset=pb.VmReset(reason=pb.ResetReason.ValueType(99))))
    assert core.take_event() == VmReset(ResetReason.UNSPECIFIED)


def test_unread_acknowledgements_add_up_and_the_last_mask_is_kept() -> None:
    core = opened(event_buffer=1)
    for gsi in (4, 9):
        core.receive(happened(gsi_acknowledged=pb.GsiAcknowledged(gsi=gsi, count=2)))
        core.receive(happened(gsi_resampled=pb.GsiResampled(gsi=gsi, count=1)))
        core.receive(happened(gsi_masked=pb.GsiMasked(gsi=gsi, masked=True)))
    core.receive(happened(gsi_acknowledged=pb.GsiAcknowledged(gsi=4, count=3)))
    core.receive(happened(gsi_resampled=pb.GsiResampled(gsi=9, count=1)))
    core.receive(happened(gsi_masked=pb.GsiMasked(gsi=4)))
    assert [core.take_event() for _ in range(6)] == [
        *[GsiAcknowledged(4, 5), GsiResampled(4, 1), GsiMasked(4, False)],
        *[GsiAcknowledged(9, 2), GsiResampled(9, 2), GsiMasked(9, True)],
    ]
    assert not core.has_event
    core.receive(happened(gsi_acknowledged=pb.GsiAcknowledged(gsi=4, count=1)))
    assert core.take_event() == GsiAcknowledged(4, 1)
    assert core.events.dropped == 0


def test_unread_eois_of_a_vector_are_one_event() -> None:
    core = opened(event_buffer=1)
    for vcpu, vector in [(0, 0x31), (1, 0x31), (0, 0x41), (0, 0x31)]:
        core.receive(happened(ioapic_eoi=pb.IoapicEoi(vcpu=vcpu, vector=vector)))
    assert [core.take_event() for _ in range(3)] == [IoapicEoi(0, 0x31), IoapicEoi(1, 0x31), IoapicEoi(0, 0x41)]
    assert not core.has_event


def test_a_sipi_that_was_ignored_says_so() -> None:
    core = opened()
    sipi = pb.Signal(kind=pb.SIGNAL_KIND_SIPI, vector=0x10)
    core.receive(happened(vcpu_signal=pb.VcpuSignal(vcpu=1, signal=sipi, ignored=True)))
    assert core.take_event() == VcpuSignal(1, SignalKind.SIPI, 0x10, ignored=True)


def test_events_that_came_before_the_end_are_read_before_it() -> None:
    core = opened()
    core.receive(pending(0))
    core.end(None, PEER)
    assert core.take_event() == InterruptPending(0)
    with pytest.raises(SessionClosed):
        core.take_event()


def test_an_unknown_event_is_skipped() -> None:
    core = opened()
    core.receive(pb.SessionResponse(event=pb.Event()))
    core.receive(pb.SessionResponse())
    assert not core.has_event


@pytest.mark.parametrize("sizes", [{"event_buffer": 0}, {"max_in_flight": 0}])
def test_a_bound_of_0_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match="1 or more"):
        opened(**sizes)

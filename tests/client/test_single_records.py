"""The fast path for single records over the port, in the core of a Session."""

from __future__ import annotations

import errno
from concurrent.futures import Future
from typing import Any

import pytest

from irqchip.records import ACCESS, CLAIMED, ERROR, EVENT, HEADER, NUMBERS, SINGLE_RESULT
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Access, IrqchipError, NotFound, NotReady, SessionClosed, ops
from irqchip_client._session import SessionCore

from .test_session import PEER, answer, opened, submit

READ = ops.pio_read(0, 0x21)
NUMBER = NUMBERS["pio_read"]


def single(core: SessionCore) -> int:
    """Sends one record on the fast path; returns its batch's serial."""
    assert READ.record is not None
    request = core.begin_single(READ.record)
    assert request[HEADER.size :] == READ.record
    serial: int = HEADER.unpack_from(request)[1]
    return serial


def read_answer(serial: int, value: int) -> bytes:
    return SINGLE_RESULT.pack(0, serial, NUMBER, CLAIMED, 0, value)


def test_one_record_is_answered_without_a_batch() -> None:
    core = opened()
    serial = single(core)
    assert not core.is_quiet
    assert core.end_single(read_answer(serial, 5)) == (CLAIMED, 0, 5)
    assert core.is_quiet
    assert READ.parse_record(CLAIMED, 0, 5) == Access(True, 5)


def test_one_record_is_in_flight_as_any_batch() -> None:
    core = opened(max_in_flight=1)
    serial = single(core)
    assert (core.has_room, core.is_idle) == (False, False)
    core.end_single(read_answer(serial, 5))
    assert (core.has_room, core.is_idle) == (True, True)


@pytest.mark.parametrize("error", [True, False], ids=["an error", "an event first"])
def test_one_record_becomes_a_batch_where_its_answer_is_not_next(error: bool) -> None:
    core = opened()
    serial = single(core)
    later, batch = submit(core, READ)
    packet = read_answer(serial, 5)
    if error:
        packet = SINGLE_RESULT.pack(0, serial, ERROR, 0, errno.ENXIO, 4) + b"none"
    else:
        assert core.end_single(EVENT.pack(0, ACCESS, 1, NUMBER, 1, 0, 0x3F8, 0)) is None
    kept: Future[list[Any]] = Future()
    if error:
        assert core.end_single(packet) is None
    core.keep_single(READ, kept)
    answered = core.receive_records(packet)
    assert answered is not None
    answered.settle()
    if error:
        assert isinstance(kept.exception(0), NotReady)
    else:
        assert kept.result(0) == [Access(True, 5)]
    answer(core, batch.serial, pb.OperationResult(pio_read=pb.PioReadResponse(claimed=True, data=6)))
    assert later.result(0) == [Access(True, 6)]


def test_the_answer_to_one_record_is_dropped_where_its_caller_waits_no_more() -> None:
    core = opened()
    abandoned = single(core)
    later, batch = submit(core, READ)
    assert core.receive_records(read_answer(abandoned, 5)) is None
    answer(core, batch.serial, pb.OperationResult(pio_read=pb.PioReadResponse(claimed=True, data=6)))
    assert later.result(0) == [Access(True, 6)]
    assert core.is_quiet


def test_one_record_that_outlives_its_session_says_why() -> None:
    core = opened()
    single(core)
    assert core.end(NotFound(errno.ENOENT, "VM 'demo' has been deleted"), PEER) == []
    kept: Future[list[Any]] = Future()
    core.keep_single(READ, kept)
    assert isinstance(kept.exception(0), SessionClosed)


def test_another_answer_is_not_taken_for_that_of_one_record() -> None:
    core = opened()
    serial = single(core)
    assert core.end_single(read_answer(serial + 1, 5)) is None
    core.keep_single(READ, Future())
    with pytest.raises(IrqchipError, match="which is not next"):
        core.receive_records(read_answer(serial + 1, 5))

import random
import struct
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import (
    DeliveryMode,
    InvalidArgument,
    IoapicState,
    LapicState,
    PicState,
    PitChannel,
    PitState,
    RedirectionEntry,
)

RANDOM_PAGE = random.Random(1).randbytes(1024)


@given(st.integers(0, (1 << 64) - 1))
def test_every_bit_of_a_redirection_entry_round_trips(raw: int) -> None:
    assert RedirectionEntry.from_raw(raw).raw == raw


def test_a_redirection_entry_reads_like_the_datasheet() -> None:
    raw = 3 << 56 | 1 << 16 | 1 << 15 | 1 << 14 | 1 << 11 | 1 << 8 | 0x31
    assert RedirectionEntry.from_raw(raw) == RedirectionEntry(
        vector=0x31,
        delivery_mode=DeliveryMode.LOWEST_PRIORITY,
        logical=True,
        remote_irr=True,
        level_triggered=True,
        masked=True,
        destination=3,
    )
    assert RedirectionEntry(pending=True, active_low=True).raw == 1 << 12 | 1 << 13


@pytest.mark.parametrize("entry", [RedirectionEntry(vector=256), RedirectionEntry(destination=-1)])
def test_an_entry_with_a_value_out_of_range_is_refused(entry: RedirectionEntry) -> None:
    with pytest.raises(InvalidArgument, match="0 to 255"):
        _ = entry.raw


@given(st.binary(min_size=16, max_size=16))
def test_a_pic_round_trips(data: bytes) -> None:
    assert PicState.from_kvm_struct(data).kvm_struct == data


def test_a_pics_fields_are_in_the_kernels_order() -> None:
    state = PicState.from_kvm_struct(bytes(range(16)))
    assert (state.last_irr, state.irr, state.imr, state.isr, state.irq_base) == (0, 1, 2, 3, 5)
    assert (state.init4, state.elcr, state.elcr_mask) == (13, 14, 15)


def test_an_ioapic_round_trips() -> None:
    data = struct.pack("<QIIII24Q", 0xFEC00000, 0x10, 2, 1 << 4, 0, *(0x1FFFF - pin for pin in range(24)))
    state = IoapicState.from_kvm_struct(data)
    assert (state.base_address, state.ioregsel, state.id, state.irr) == (0xFEC00000, 0x10, 2, 1 << 4)
    assert [entry.raw for entry in state.entries] == [0x1FFFF - pin for pin in range(24)]
    assert state.kvm_struct == data


def test_a_lapic_round_trips_with_its_unnamed_bytes() -> None:
    state = LapicState.from_kvm_struct(RANDOM_PAGE)
    assert state.kvm_struct == RANDOM_PAGE
    assert state.tpr == int.from_bytes(RANDOM_PAGE[0x80:0x84], "little")


def test_a_lapics_vectors_are_read_across_its_registers() -> None:
    page = bytearray(1024)
    page[0x200] = 0x01  # IRR 31:0
    page[0x270 + 3] = 0x80  # IRR 255:224
    page[0x110] = 0x02  # ISR 63:32
    state = LapicState.from_kvm_struct(bytes(page))
    assert (state.irr, state.isr, state.tmr) == ((0, 255), (33,), ())


def test_a_replaced_field_is_in_the_kernels_struct() -> None:
    assert replace(PicState(), imr=0xFB).kvm_struct == bytes([0, 0, 0xFB, *[0] * 13])
    state = replace(LapicState.from_kvm_struct(RANDOM_PAGE), tpr=0x20, irr=(0x31,))
    page = state.kvm_struct
    assert page[0x80:0x84] == b"\x20\0\0\0"
    assert LapicState.from_kvm_struct(page) == state


@given(st.binary(min_size=76, max_size=76))
def test_a_pit_round_trips_except_for_its_reserved_bytes(data: bytes) -> None:
    assert PitState.from_kvm_struct(data + bytes(range(36))).kvm_struct == data + bytes(36)


def test_a_pits_fields_are_in_the_kernels_order() -> None:
    channel = struct.pack("<IH10Bq", 0x10000, 0x1234, *range(1, 11), -5)
    state = PitState.from_kvm_struct(channel * 3 + struct.pack("<I36x", 2))
    assert [*astuple(state.channels[0])] == [0x10000, 0x1234, *range(1, 11), -5]
    last = state.channels[2]
    assert (last.count_latched, last.read_state, last.mode, last.gate, last.count_load_time) == (1, 4, 8, 10, -5)
    assert state.flags == 2


def test_a_pits_defaults_are_its_reset_state() -> None:
    assert [(channel.count, channel.mode, channel.gate) for channel in PitState().channels] == [
        *[(65536, 255, 1), (65536, 255, 1), (65536, 255, 0)]
    ]


@pytest.mark.parametrize(
    "state",
    [PicState(imr=256), IoapicState(irr=-1), IoapicState(entries=()), PitState((PitChannel(gate=256),) * 3)],
)
def test_a_state_with_a_value_out_of_range_is_refused(state: PicState | IoapicState | PitState) -> None:
    with pytest.raises(InvalidArgument, match="does not fit"):
        _ = state.kvm_struct


def test_a_lapic_with_a_value_out_of_range_is_refused() -> None:
    lapic = LapicState.from_kvm_struct(bytes(1024))
    with pytest.raises(InvalidArgument, match="irr holds vectors"):
        _ = replace(lapic, irr=(256,)).kvm_struct
    with pytest.raises(InvalidArgument, match="1024 bytes"):
        _ = replace(lapic, rest=b"").kvm_struct


def test_a_pit_has_three_channels() -> None:
    with pytest.raises(InvalidArgument, match="3 channels, not 2"):
        _ = PitState((PitChannel(),) * 2).kvm_struct


@pytest.mark.parametrize("state", [PicState, IoapicState, LapicState, PitState])
def test_bytes_of_the_wrong_length_are_refused(state: type[PicState | IoapicState | LapicState | PitState]) -> None:
    with pytest.raises(InvalidArgument, match="bytes, not 15"):
        state.from_kvm_struct(bytes(15))

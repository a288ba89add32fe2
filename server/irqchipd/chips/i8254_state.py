"""The state of an 8254: its three counters, and the chip in a snapshot."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from irqchipd.chips.saved import check, in_range

FREQUENCY: Final = 1_193_182  # Hz of the CLK inputs. KVM: i8254.h KVM_PIT_FREQ
MAX_COUNT: Final = 0x10000  # the meaning of an initial count of 0. KVM: i8254.c pit_load_count; in BCD, too
MIN_PERIOD: Final = 200_000  # ns, of a periodic timer. KVM: x86.c min_timer_period_us
MAX_PENDING: Final = (1 << 31) - 1  # ticks. KVM: i8254.h, an int
MAX_PERIOD: Final = 0xFFFF_FFFF * 1_000_000_000 // FREQUENCY  # ns; a restored count has 32 bits
CHANNELS: Final = 3
_SECOND: Final = 1_000_000_000  # ns

_CHANNEL: Final = struct.Struct("<IH10Bq")  # struct kvm_pit_channel_state
_FLAGS: Final = struct.Struct("<I36x")
CHANNELS_SIZE: Final = CHANNELS * _CHANNEL.size  # struct kvm_pit_state
STATE_SIZE: Final = CHANNELS_SIZE + _FLAGS.size  # struct kvm_pit_state2


class Access:
    """The halves of a count that are read and written."""

    LATCH: Final = 0  # not an access mode but a command: latch the count
    LSB: Final = 1
    MSB: Final = 2
    WORD: Final = 3  # the low half, then the high one
    WORD_MSB: Final = 4  # the high half of a word is next; only in read_state and write_state


class Mode:
    """The mode of a counter."""

    TERMINAL_COUNT: Final = 0
    ONE_SHOT: Final = 1
    RATE_GENERATOR: Final = 2
    SQUARE_WAVE: Final = 3
    SOFTWARE_STROBE: Final = 4
    HARDWARE_STROBE: Final = 5
    NONE: Final = 0xFF  # KVM: i8254.c kvm_pit_reset; before the first control word


@dataclass(slots=True)
class PitChannel:
    """One counter; the fields are those of struct kvm_pit_channel_state, in its order. The default is the reset state.

    KVM: a restored field may hold any value, also one that no guest can set; but a count is never 0.
    """

    # The initial count, 1 to 10000h, or 32 bits if restored.
    count: int = MAX_COUNT
    # The count that the latch command latched, 16 bits.
    latched_count: int = 0
    # The Access for reading latched_count, 0 if no count is latched.
    count_latched: int = 0
    # Whether the next read gives the latched status.
    status_latched: int = 0
    # OUT, access, mode and BCD as read-back latched them.
    status: int = 0
    # The half that the next read returns.
    read_state: int = 0
    # The half that the next write sets.
    write_state: int = 0
    # The low half, written before the high half.
    write_latch: int = 0
    # The Access of the last control word.
    rw_mode: int = 0
    # The Mode of the last control word.
    mode: int = Mode.NONE
    # KVM: i8254.c pit_get_count; BCD is stored, and every counter counts in binary.
    bcd: int = 0
    # The GATE input.
    gate: int = 1
    # When the count was loaded, or restarted by the gate. KVM: i8254.c pit_load_count; not kept for channel 0.
    count_load_time: int = 0

    def copy(self) -> PitChannel:
        """An independent copy."""
        return PitChannel(*_values(self))

    def pack(self) -> bytes:
        """struct kvm_pit_channel_state, 24 bytes."""
        return _CHANNEL.pack(*_values(self))

    @classmethod
    def unpack(cls, data: bytes) -> PitChannel:
        """From struct kvm_pit_channel_state; any 24 bytes are valid, as in the kernel."""
        return cls(*_CHANNEL.unpack(data))

    def counter(self, elapsed: int) -> int:
        """The counter's value, 16 bits, some ns after its count was loaded.

        KVM: i8254.c pit_get_count; GATE stops no counter, and mode 3 treats odd counts like even ones.
        """
        ticks = _ticks(elapsed)
        match self.mode:
            case Mode.TERMINAL_COUNT | Mode.ONE_SHOT | Mode.SOFTWARE_STROBE | Mode.HARDWARE_STROBE:
                counter = self.count - ticks
            case Mode.SQUARE_WAVE:
                counter = self.count - 2 * ticks % self.count
            case _:  # rate generator, and invalid modes
                counter = self.count - ticks % self.count
        return counter & 0xFFFF

    def output(self, elapsed: int) -> int:
        """The level of OUT some ns after the count was loaded.

        KVM: i8254.c pit_get_out; in modes 1, 2, 4 and 5 the level is the inverse of the datasheet's.
        """
        ticks = _ticks(elapsed)
        match self.mode:
            case Mode.ONE_SHOT:
                return int(ticks < self.count)
            case Mode.RATE_GENERATOR:
                return int(ticks != 0 and ticks % self.count == 0)
            case Mode.SQUARE_WAVE:
                half = (self.count + 1 & 0xFFFF_FFFF) >> 1  # KVM: i8254.c pit_get_out; in 32 bits, as count is
                return int(ticks % self.count < half)
            case Mode.SOFTWARE_STROBE | Mode.HARDWARE_STROBE:
                return int(ticks == self.count)
            case _:  # terminal count, and invalid modes
                return int(ticks >= self.count)


_values = attrgetter(*(field.name for field in fields(PitChannel)))


def _ticks(elapsed: int) -> int:
    """The whole clocks in some ns."""
    return elapsed * FREQUENCY // _SECOND


@dataclass(slots=True)
class PitState:
    """struct kvm_pit_state2, for KVM_GET_PIT2 and KVM_SET_PIT2."""

    channels: tuple[PitChannel, ...]
    flags: int = 0

    def pack(self) -> bytes:
        """struct kvm_pit_state2, 112 bytes."""
        return b"".join(channel.pack() for channel in self.channels) + _FLAGS.pack(self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> PitState:
        """From struct kvm_pit_state2; any 112 bytes are valid, as in the kernel."""
        channels = tuple(
            PitChannel.unpack(data[start : start + _CHANNEL.size])
            for start in range(0, CHANNELS * _CHANNEL.size, _CHANNEL.size)
        )
        return cls(channels, *_FLAGS.unpack(data[CHANNELS * _CHANNEL.size :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPit:
    """The chip in a snapshot: the contract's PitSnapshot."""

    state: bytes
    speaker: bool  # whether port 61h exists
    reinject: bool
    acknowledged: bool
    pending: int
    period_ns: int
    periodic: bool
    expires_ns: int | None
    running: bool

    def check(self, now: int) -> None:
        """Refuse a state that no PIT can have at this time."""
        check(len(self.state) == STATE_SIZE, f"the PIT's state has {len(self.state)} bytes, not {STATE_SIZE}")
        channels = PitState.unpack(self.state).channels
        check(all(channel.count for channel in channels), "a channel of the PIT counts from 0")
        for channel in channels[1:]:  # the first has a timer instead
            in_range(channel.count_load_time, 0, now, "count_load_time")
        check((self.expires_ns is None) == (self.period_ns == 0), "the PIT has only one of expires_ns and period_ns")
        in_range(self.period_ns, 0, MAX_PERIOD, "period_ns of the PIT")
        in_range(self.pending, 0, MAX_PENDING, "pending of the PIT")
        in_range(self.expires_ns, 0, now + self.period_ns, "expires_ns of the PIT")
        check(not self.running or self.expires_ns is not None, "the PIT runs without expires_ns")
        check(not (self.running and self.periodic) or self.period_ns >= MIN_PERIOD, "the PIT's period is too short")

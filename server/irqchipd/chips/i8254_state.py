"""What an 8254 holds: its three counters, and what a snapshot keeps of the chip."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from irqchipd.chips.saved import check, in_range

FREQUENCY: Final = 1_193_182  # Hz of the CLK inputs. KVM: i8254.h KVM_PIT_FREQ
MAX_COUNT: Final = 0x10000  # what an initial count of 0 means. KVM: i8254.c pit_load_count; in BCD, too
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
    """Which halves of a count are read and written."""

    LATCH: Final = 0  # no access mode but a command: latch the count
    LSB: Final = 1
    MSB: Final = 2
    WORD: Final = 3  # the low half, then the high one
    WORD_MSB: Final = 4  # the high half of a word is next; only in read_state and write_state


class Mode:
    """What a counter does."""

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

    KVM: any of them may hold what no guest could set there, once restored; but a count is never 0.
    """

    # The initial count, 1 to 10000h, or 32 bits if restored.
    count: int = MAX_COUNT
    # The count that the latch command caught, 16 bits.
    latched_count: int = 0
    # The Access in which latched_count is to be read, 0 if none is latched.
    count_latched: int = 0
    # Whether the next read gives the latched status.
    status_latched: int = 0
    # OUT, access, mode and BCD as read-back caught them.
    status: int = 0
    # Which half the next read gives.
    read_state: int = 0
    # Which half the next write is.
    write_state: int = 0
    # The low half that was written while the high one is awaited.
    write_latch: int = 0
    # The Access of the last control word.
    rw_mode: int = 0
    # The Mode of the last control word.
    mode: int = Mode.NONE
    # KVM: i8254.c pit_get_count; BCD is stored, and every counter counts in binary.
    bcd: int = 0
    # The GATE input.
    gate: int = 1
    # When the count was loaded, or the gate started it over. KVM: i8254.c pit_load_count; not kept of channel 0.
    count_load_time: int = 0

    def copy(self) -> PitChannel:
        """The same state, on its own."""
        return PitChannel(*_values(self))

    def pack(self) -> bytes:
        """struct kvm_pit_channel_state, 24 bytes."""
        return _CHANNEL.pack(*_values(self))

    @classmethod
    def unpack(cls, data: bytes) -> PitChannel:
        """From struct kvm_pit_channel_state; any 24 bytes are a state, as in the kernel."""
        return cls(*_CHANNEL.unpack(data))

    def counter(self, elapsed: int) -> int:
        """What the counter stands at, 16 bits, some ns after its count was loaded.

        KVM: i8254.c pit_get_count; GATE stops no counter, and mode 3 counts odd counts as it does even ones.
        """
        ticks = _ticks(elapsed)
        match self.mode:
            case Mode.TERMINAL_COUNT | Mode.ONE_SHOT | Mode.SOFTWARE_STROBE | Mode.HARDWARE_STROBE:
                counter = self.count - ticks
            case Mode.SQUARE_WAVE:
                counter = self.count - 2 * ticks % self.count
            case _:  # rate generator, and what is no mode
                counter = self.count - ticks % self.count
        return counter & 0xFFFF

    def output(self, elapsed: int) -> int:
        """The level of OUT some ns after the count was loaded.

        KVM: i8254.c pit_get_out; in modes 1, 2, 4 and 5 it is high where the datasheet's is low, and low where it is
        high.
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
            case _:  # terminal count, and what is no mode
                return int(ticks >= self.count)


_values = attrgetter(*(field.name for field in fields(PitChannel)))


def _ticks(elapsed: int) -> int:
    """The whole clocks in some ns."""
    return elapsed * FREQUENCY // _SECOND


@dataclass(slots=True)
class PitState:
    """struct kvm_pit_state2: what KVM_GET_PIT2 gives and KVM_SET_PIT2 takes."""

    channels: tuple[PitChannel, ...]
    flags: int = 0

    def pack(self) -> bytes:
        """struct kvm_pit_state2, 112 bytes."""
        return b"".join(channel.pack() for channel in self.channels) + _FLAGS.pack(self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> PitState:
        """From struct kvm_pit_state2; any 112 bytes are a state, as in the kernel."""
        channels = tuple(
            PitChannel.unpack(data[start : start + _CHANNEL.size])
            for start in range(0, CHANNELS * _CHANNEL.size, _CHANNEL.size)
        )
        return cls(channels, *_FLAGS.unpack(data[CHANNELS * _CHANNEL.size :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPit:
    """The chip as a snapshot holds it: the contract's PitSnapshot."""

    state: bytes
    speaker: bool  # whether there is port 61h
    reinject: bool
    acknowledged: bool
    pending: int
    period_ns: int
    periodic: bool
    expires_ns: int | None
    running: bool

    def check(self, now: int) -> None:
        """Refuse what no PIT can be at this time."""
        check(len(self.state) == STATE_SIZE, f"the PIT is not {STATE_SIZE} bytes")
        channels = PitState.unpack(self.state).channels
        check(all(channel.count for channel in channels), "a channel of the PIT counts from 0")
        for channel in channels[1:]:  # the first has a timer instead
            in_range(channel.count_load_time, 0, now, "count_load_time")
        check((self.expires_ns is None) == (self.period_ns == 0), "expires_ns and period_ns of the PIT go together")
        in_range(self.period_ns, 0, MAX_PERIOD, "period_ns of the PIT")
        in_range(self.pending, 0, MAX_PENDING, "pending of the PIT")
        in_range(self.expires_ns, 0, now + self.period_ns, "expires_ns of the PIT")
        check(not self.running or self.expires_ns is not None, "the PIT runs and does not expire")
        check(not (self.running and self.periodic) or self.period_ns >= MIN_PERIOD, "the PIT's period is too short")

"""The 8254 interval timer of a PC, as in Linux KVM (arch/x86/kvm/i8254.c), with the speaker's port.

Intel 8254 datasheet (231164): three counters of 16 bits. A control word sets a counter's mode, and which halves
of the count are written and read; the latch and read-back commands hold a count or a status for a reader. The output of
counter 0 is the timer interrupt, and counter 2 drives the speaker.

Nothing here counts: a read computes the count from the time, and channel 0 has one alarm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Protocol

from irqchipd.chips.i8254_state import (
    CHANNELS,
    FREQUENCY,
    MAX_COUNT,
    MAX_PENDING,
    MIN_PERIOD,
    Access,
    Mode,
    PitChannel,
    PitState,
    SavedPit,
)
from irqchipd.chips.saved import not_too_late

SPEAKER_CHANNEL: Final = 2
_SECOND: Final = 1_000_000_000  # ns


class Port:
    """The addresses of the chip and the speaker's port on the I/O bus."""

    CHANNEL_0: Final = 0x40
    CHANNEL_1: Final = 0x41
    CHANNEL_2: Final = 0x42
    CONTROL: Final = 0x43
    SPEAKER: Final = 0x61


# Control word, datasheet order: counter in bits 7:6, Access in 5:4, Mode in 3:1, BCD in 0.
BCD: Final = 0x01


# Read-back command: a control word for counter 3. Bits 3:1 choose the counters.
READ_BACK: Final = 3
READ_BACK_NO_COUNT: Final = 0x20
READ_BACK_NO_STATUS: Final = 0x10

# Port 61h.
SPEAKER_GATE: Final = 0x01  # the gate of channel 2
SPEAKER_DATA_ON: Final = 0x02
SPEAKER_REFRESH: Final = 4  # the number of the bit that toggles with the memory's refresh
SPEAKER_OUT: Final = 5  # the number of the bit for channel 2's output
REFRESH_SHIFT: Final = 14  # KVM: i8254.c speaker_ioport_read; "about 15us" is taken as 2^14 ns

# struct kvm_pit_state2's flags.
FLAG_HPET_LEGACY: Final = 0x01
FLAG_SPEAKER_DATA_ON: Final = 0x02


class PitWires(Protocol):
    """The calls of the PIT to its VM."""

    def now(self) -> int:
        """The time in ns. It never runs backwards."""

    def set_pit_alarm(self, deadline: int | None) -> None:
        """Call timer_expired() once at a time; a deadline replaces the last one, and None stops the alarm."""

    def deliver_tick(self) -> None:
        """Raise and lower GSI 0, and send an NMI to CPUs whose LINT0 makes the PIT's interrupt an NMI."""

    def deliver_later(self) -> None:
        """Call deliver() at the end of the operation (the kernel has a thread for it)."""


@dataclass(slots=True)
class Pit:
    """The chip, the timer for channel 0's output, and the ticks that wait for an acknowledgement."""

    wires: PitWires
    channels: list[PitChannel]
    flags: int = 0
    # Whether a tick waits until the tick before it is acknowledged.
    reinject: bool = True
    # Ticks that have not been acknowledged: the last delivered tick, and waiting ticks.
    pending: int = 0
    # Whether the last tick has been acknowledged.
    acknowledged: bool = True
    # Channel 0's period, ns; 0 before the first start.
    period: int = 0
    # Whether channel 0's timer is periodic.
    periodic: bool = False
    # When the timer is due, or, if it does not run, was due.
    expires: int | None = None
    running: bool = False

    @classmethod
    def at_reset(cls, wires: PitWires) -> Pit:
        """The chip at power-on. KVM: i8254.c kvm_create_pit, kvm_pit_reset; the gate of channel 2 is low."""
        now = wires.now()
        channels = [PitChannel(), PitChannel(count_load_time=now), PitChannel(gate=0, count_load_time=now)]
        return cls(wires, channels)

    def reset(self) -> None:
        """Power on again; the setting for waiting ticks stays."""
        self._stop_timer()
        fresh = Pit.at_reset(self.wires)
        fresh.reinject = self.reinject
        for field in fields(Pit):
            setattr(self, field.name, getattr(fresh, field.name))

    # Ports.

    def read(self, port: int, size: int) -> int:  # noqa: ARG002
        """A guest's IN. KVM: i8254.c pit_ioport_read; one byte for any size. The control port reads as 0."""
        if port == Port.CONTROL:
            return 0
        return self._read_counter(port - Port.CHANNEL_0)

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        """A guest's OUT. KVM: i8254.c pit_ioport_write; the low byte for any size."""
        value &= 0xFF
        if port == Port.CONTROL:
            self._write_control(value)
        else:
            self._write_counter(port - Port.CHANNEL_0, value)

    def _write_control(self, value: int) -> None:
        """A control word, or a command: read-back (counter 3) or latch (access 0)."""
        index, access = value >> 6, value >> 4 & 3
        if index == READ_BACK:
            for counter in range(CHANNELS):
                if value & 2 << counter:
                    if not value & READ_BACK_NO_COUNT:
                        self._latch_count(counter)
                    if not value & READ_BACK_NO_STATUS:
                        self._latch_status(counter)
        elif access == Access.LATCH:
            self._latch_count(index)
        else:
            # KVM: i8254.c pit_ioport_write; the old count continues in the new mode, and latched values stay.
            channel = self.channels[index]
            channel.rw_mode = channel.read_state = channel.write_state = access
            mode = value >> 1 & 7
            channel.mode = mode if mode <= Mode.HARDWARE_STROBE else mode - 4  # 6 and 7 are 2 and 3
            channel.bcd = value & BCD

    def _latch_count(self, index: int) -> None:
        """Latch the count, unless a count is latched already.

        KVM: i8254.c pit_latch_count; a counter without an access mode does not latch.
        """
        channel = self.channels[index]
        if not channel.count_latched:
            channel.latched_count = channel.counter(self._elapsed(index))
            channel.count_latched = channel.rw_mode

    def _latch_status(self, index: int) -> None:
        """Latch the status, unless one is latched. KVM: i8254.c pit_latch_status; NULL COUNT (bit 6) is never set."""
        channel = self.channels[index]
        if not channel.status_latched:
            status = self.output(index) << 7 | channel.rw_mode << 4 | channel.mode << 1 | channel.bcd
            channel.status = status & 0xFF
            channel.status_latched = 1

    def _read_counter(self, index: int) -> int:
        """The latched status, else a half of the latched count, else a half of the current count."""
        channel = self.channels[index]
        if channel.status_latched:
            channel.status_latched = 0
            return channel.status
        if channel.count_latched:
            access = channel.count_latched
            channel.count_latched = Access.MSB if access == Access.WORD else 0
            return channel.latched_count >> 8 if access == Access.MSB else channel.latched_count & 0xFF
        counter = channel.counter(self._elapsed(index))
        match channel.read_state:
            case Access.MSB:
                return counter >> 8
            case Access.WORD:
                channel.read_state = Access.WORD_MSB
                return counter & 0xFF
            case Access.WORD_MSB:
                channel.read_state = Access.WORD
                return counter >> 8
            case _:  # KVM: i8254.c pit_ioport_read; also before an access mode is set
                return counter & 0xFF

    def _write_counter(self, index: int, value: int) -> None:
        """A half of an initial count."""
        channel = self.channels[index]
        match channel.write_state:
            case Access.MSB:
                self._load(index, value << 8)
            case Access.WORD:
                channel.write_latch = value
                channel.write_state = Access.WORD_MSB
            case Access.WORD_MSB:
                self._load(index, channel.write_latch | value << 8)
                channel.write_state = Access.WORD
            case _:  # KVM: i8254.c pit_ioport_write; also before an access mode is set
                self._load(index, value)

    # Counting.

    def output(self, index: int) -> int:
        """The level of a channel's OUT."""
        return self.channels[index].output(self._elapsed(index))

    def set_gate(self, index: int, level: int) -> None:
        """Drive a channel's GATE. KVM: i8254.c pit_set_gate; only port 61h drives a GATE, and only channel 2's."""
        channel = self.channels[index]
        triggered = (Mode.ONE_SHOT, Mode.RATE_GENERATOR, Mode.SQUARE_WAVE, Mode.HARDWARE_STROBE)
        if channel.gate < level and channel.mode in triggered:
            channel.count_load_time = self.wires.now()
        channel.gate = level

    def _elapsed(self, index: int) -> int:
        """The ns since a channel began to count.

        KVM: i8254.c __kpit_elapsed; channel 0 follows its timer. So with a period below the limit it is ahead from the
        start, it begins again at every expiry, and it is 0 if the timer was never started.
        """
        now = self.wires.now()
        if index != 0:
            return now - self.channels[index].count_load_time
        return 0 if self.expires is None else self.period - (self.expires - now)

    def _load(self, index: int, count: int, *, timer_off: bool = False) -> None:
        """A new initial count, which counts at once. KVM: i8254.c pit_load_count, kvm_pit_load_count."""
        channel = self.channels[index]
        channel.count = count or MAX_COUNT
        if index != 0:
            channel.count_load_time = self.wires.now()
            return
        match Mode.NONE if timer_off else channel.mode:
            case Mode.TERMINAL_COUNT | Mode.ONE_SHOT | Mode.SOFTWARE_STROBE:
                self._start_timer(channel.count, periodic=False)
            case Mode.RATE_GENERATOR | Mode.SQUARE_WAVE:
                self._start_timer(channel.count, periodic=True)
            case _:  # KVM: i8254.c pit_load_count; mode 5 never interrupts
                self._stop_timer()

    # The timer.

    def _start_timer(self, count: int, *, periodic: bool) -> None:
        """KVM: i8254.c create_pit_timer; the minimum period delays only later expiries, not the first."""
        if self.flags & FLAG_HPET_LEGACY:
            return
        interval = count * _SECOND // FREQUENCY
        self.period = max(interval, MIN_PERIOD) if periodic else interval
        self.periodic = periodic
        self._forget_ticks()
        self.expires = self.wires.now() + interval
        self.running = True
        self.wires.set_pit_alarm(self.expires)

    def _stop_timer(self) -> None:
        """KVM: i8254.c destroy_pit_timer; the count continues from the timer's."""
        if self.running:
            self.running = False
            self.wires.set_pit_alarm(None)

    def timer_expired(self) -> None:
        """The alarm rings: a tick. KVM: i8254.c pit_timer_fn; late ticks follow one by one."""
        if not self.running or self.expires is None:
            return
        if self.reinject:
            self.pending = min(self.pending + 1, MAX_PENDING)
        if self.periodic:
            self.expires += self.period
            self.wires.set_pit_alarm(self.expires)
        else:
            self.running = False
        self.deliver()

    # Ticks.

    def deliver(self) -> None:
        """Deliver a tick, unless it has to wait for the last tick's acknowledgement. KVM: i8254.c pit_do_work."""
        if self.reinject:
            if not self.acknowledged:
                return
            self.acknowledged = False
        self.wires.deliver_tick()

    def irq_acked(self) -> None:
        """GSI 0 was acknowledged. KVM: i8254.c kvm_pit_ack_irq, which is registered only while ticks wait."""
        if not self.reinject:
            return
        self.acknowledged = True
        if self.pending:
            self.pending -= 1
            if self.pending:
                self.wires.deliver_later()

    def gsi_masked(self, masked: bool) -> None:
        """GSI 0 was masked or unmasked. KVM: i8254.c pit_mask_notifer, which is registered only while ticks wait."""
        if self.reinject and not masked:
            self._forget_ticks()

    def set_reinject(self, reinject: bool) -> None:
        """Set whether ticks wait. KVM: i8254.c kvm_pit_set_reinject; waiting ticks stay when it is turned off."""
        if reinject and not self.reinject:
            self._forget_ticks()
        self.reinject = reinject

    def _forget_ticks(self) -> None:
        """KVM: i8254.c kvm_pit_reset_reinject."""
        self.pending = 0
        self.acknowledged = True

    # State.

    def state(self) -> PitState:
        """The state for KVM_GET_PIT2."""
        return PitState(tuple(channel.copy() for channel in self.channels), self.flags)

    def restore(self, state: PitState) -> None:
        """KVM_SET_PIT2: a raw copy, and every count is loaded anew.

        KVM: i8254.c kvm_vm_ioctl_set_pit2; when the HPET takes over from channel 0, the timer stops, and the mode stays
        until the HPET gives channel 0 back.
        """
        hpet_takes_over = bool(state.flags & ~self.flags & FLAG_HPET_LEGACY)
        self.channels = [channel.copy() for channel in state.channels]
        self.flags = state.flags
        for index, channel in enumerate(self.channels):
            self._load(index, channel.count, timer_off=hpet_takes_over and index == 0)

    def save(self, *, speaker: bool) -> SavedPit:
        """For a snapshot."""
        return SavedPit(
            state=PitState(tuple(self.channels), self.flags).pack(),
            speaker=speaker,
            reinject=self.reinject,
            acknowledged=self.acknowledged,
            pending=self.pending,
            period_ns=self.period,
            periodic=self.periodic,
            expires_ns=self.expires,
            running=self.running,
        )

    def resume(self, saved: SavedPit) -> None:
        """Resume from a checked snapshot."""
        state = PitState.unpack(saved.state)
        self.channels, self.flags = list(state.channels), state.flags
        self.reinject, self.acknowledged, self.pending = saved.reinject, saved.acknowledged, saved.pending
        self.period, self.periodic = saved.period_ns, saved.periodic
        self.expires, self.running = saved.expires_ns, saved.running
        if self.running and self.periodic and self.expires is not None:
            self.expires = not_too_late(self.expires, self.period, self.wires.now())
        self.wires.set_pit_alarm(self.expires if self.running else None)


@dataclass(slots=True)
class Speaker:
    """The PIT's part of port 61h: channel 2's gate and output. KVM: i8254.c, with KVM_PIT_SPEAKER_DUMMY."""

    pit: Pit

    def read(self, port: int, size: int) -> int:  # noqa: ARG002
        """A guest's IN. KVM: i8254.c speaker_ioport_read; a restored gate reads with all its bits."""
        pit = self.pit
        refresh = pit.wires.now() >> REFRESH_SHIFT & 1
        data_on = SPEAKER_DATA_ON if pit.flags & FLAG_SPEAKER_DATA_ON else 0
        gate = pit.channels[SPEAKER_CHANNEL].gate
        return data_on | gate | pit.output(SPEAKER_CHANNEL) << SPEAKER_OUT | refresh << SPEAKER_REFRESH

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        """A guest's OUT. KVM: i8254.c speaker_ioport_write; bits above 1 are dropped."""
        pit = self.pit
        if value & SPEAKER_DATA_ON:
            pit.flags |= FLAG_SPEAKER_DATA_ON
        else:
            pit.flags &= ~FLAG_SPEAKER_DATA_ON
        pit.set_gate(SPEAKER_CHANNEL, value & SPEAKER_GATE)

"""Every model's state: a restored device continues as the saved one would have, and an impossible state is refused."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irqchip_client import InvalidArgument
from irqchip_client.devices import I8042, BlockDevice, Crtc, DebugExit, Device, FwCfg, Ide, LinePorts, Rtc, Uart
from irqchip_client.devices.device import OutputLine, Timer
from irqchip_client.devices.image_file import SECTOR
from irqchip_client.devices.keys import KEYS
from irqchip_client.devices.saving import Fields, Number
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.bench import Bench

Step = tuple[str, int, int, int]
KEY_NAMES = sorted(KEYS)
WALL = 1_800_000_000.25
MEMORY = GuestMemory(0x1000)  # which no device leaves other than as zeros


class Model:
    """A model, on its bench or not yet."""

    def __init__(self, kind: str, image: Path, saved: Any = None, now: float = 1000.0) -> None:
        self.sent = b""
        self.takes = True
        self.now = now
        self.bench: Bench | None = None
        self.device = self.make(kind, image)
        if isinstance(self.device, BlockDevice | Ide):
            weakref.finalize(self, self.device.close)  # else examples have more files open than select() can wait for
        if saved is not None:
            self.device.restore(saved)

    def make(self, kind: str, image: Path) -> Device:
        match kind:
            case "uart" | "paced uart":
                return Uart(self.output, paced=kind == "paced uart")
            case "rtc":
                return Rtc(clock=lambda: WALL + (self.bench.time if self.bench else self.now))
            case "i8042":
                return I8042()
            case "disk":
                return BlockDevice(image, seek=0.125)
            case "ide":
                return Ide(image, seek=0.125)
            case "two disks":
                return Ide(image, image, seek=0.125)
            case "crtc":
                return Crtc()
            case "exit":
                return DebugExit(lambda _: None)
            case "fw_cfg":
                return FwCfg(2, 1 << 20, {"opt/x": b"abc"}, dma=True)
            case _:
                return LinePorts()

    def output(self, data: bytes) -> bool:
        self.sent += data if self.takes else b""
        return self.takes

    def run(self) -> Model:
        self.bench = Bench(self.device, now=self.now, ram=MEMORY)
        return self

    def step(self, step: Step) -> object:
        """Do one step; returns its visible result."""
        what, where, value, size = step
        bench, device = self.bench, self.device
        assert bench is not None
        region = device.regions[where % len(device.regions)]
        offset = where % region.length
        size = max(each for each in (1, 2, 4) if each <= size and offset + each <= region.length)
        match what:
            case "read":
                return bench.read(region.start + offset, size)
            case "write":
                bench.write(region.start + offset, value & (1 << 8 * size) - 1, size)
            case "wait":
                bench.advance(value % 4096 / 1024)
            case "user":
                self.user(where, value)
        return [line.level for line in device.lines], self.sent, bench.due

    def user(self, where: int, value: int) -> None:
        match self.device:
            case Uart() as uart:
                self.takes = bool(value & 1)
                uart.receive(bytes((value >> 8 & 0xFF,)), value & 0x1C)
                uart.set_modem(where)
            case I8042() as i8042 if where & 1:
                i8042.move(value & 0x3FF, -where, where >> 1 & 7, value >> 10 & 7)
            case I8042() as i8042 if where & 2:
                i8042.press(KEY_NAMES[value % len(KEY_NAMES)])
            case I8042() as i8042:
                i8042.type_text("aB\n"[value % 3])

    def save(self) -> Any:
        return json.loads(json.dumps(self.device.save()))


KINDS = ["uart", "paced uart", "rtc", "i8042", "disk", "ide", "two disks", "crtc", "exit", "fw_cfg", "lines"]
# Values with a meaning to some model: commands, bits, sectors.
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 0x0F, 0x13, 0x20, 0x60, 0x70, 0x71, 0x82, 0xAA, 0xAD, 0xAE, 0xA8, 0xC7, 0xD4]),
    st.sampled_from([0x30, 0xC4, 0xC5, 0xC6, 0xE0, 0xE7, 0xEC, 0xEF, 0x10]),
    st.sampled_from([0xED, 0xF2, 0xF3, 0xF4, 0xF5, 0xFF, 200, 100, 80]),
    st.integers(0, (1 << 32) - 1),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "write", "wait", "user"]),
        st.integers(0, 31),
        VALUES,
        st.sampled_from([1, 1, 2, 4]),
    ),
    max_size=40,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    return path


properties = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", KINDS)
@given(before=STEPS, behind=STEPS)
@properties
def test_a_restored_device_continues_like_the_original(
    kind: str, image: Path, before: list[Step], behind: list[Step]
) -> None:
    one = Model(kind, image).run()
    for step in before:
        one.step(step)
    assert one.bench is not None
    saved = one.save()
    other = Model(kind, image, saved, one.bench.time)
    other.takes, other.sent = one.takes, one.sent
    other.run()
    assert other.save() == saved
    for step in behind:
        ours, theirs = one.step(step), other.step(step)
        assert ours == theirs if not isinstance(ours, tuple) else ours[:2] == theirs[:2]  # type: ignore[index]
    assert other.save() == one.save()


@pytest.mark.parametrize("kind", KINDS)
@given(before=STEPS, behind=STEPS)
@properties
def test_a_running_device_is_restored_to_an_earlier_state(
    kind: str, image: Path, before: list[Step], behind: list[Step]
) -> None:
    model = Model(kind, image).run()
    for step in before:
        model.step(step)
    saved = model.save()
    for step in behind:
        if step[0] != "wait":  # the RTC's battery does not stop
            model.step(step)
    model.device.restore(saved)
    assert model.save() == saved


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rtc"])
@given(before=STEPS)
@properties
def test_a_reset_restores_the_initial_state(kind: str, image: Path, before: list[Step]) -> None:
    model = Model(kind, image).run()
    for step in before:
        model.step(step)
    model.device.reset()
    if isinstance(model.device, I8042):
        model.device._text.clear()  # typed characters belong to the user and survive a reset
        model.device.reset()
    assert model.save() == Model(kind, image).run().save()


def test_a_reset_ends_a_clocks_interrupts_and_leaves_the_time(image: Path) -> None:
    model = Model("rtc", image).run()
    bench = model.bench
    assert bench is not None
    for register, value in ((0x0A, 0x26), (0x0B, 0x7A), (0x40, 0x55), (9, 0x99)):
        bench.write(0x70, register)
        bench.write(0x71, value)
    bench.advance(2)
    assert bench.level(8)
    model.device.reset()
    assert not bench.level(8)
    assert bench.due is None
    seen = []
    for register in (0x0B, 0x40, 9):
        bench.write(0x70, register)
        seen.append(bench.read(0x71))
    assert seen == [0x02, 0x55, 0x99]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 300) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def mutate(saved: Any, path: list[int], value: Any) -> Any:
    """The saved state with another value at one place."""
    if not path or not isinstance(saved, dict | list) or not saved:
        return value
    changed = copy.copy(saved)
    key = sorted(changed)[path[0] % len(changed)] if isinstance(changed, dict) else path[0] % len(changed)
    changed[key] = mutate(changed[key], path[1:], value)
    return changed


@pytest.mark.parametrize("kind", KINDS)
@given(before=STEPS, path=st.lists(st.integers(0, 30), min_size=1, max_size=4), value=PLAIN | VALUES, behind=STEPS)
@properties
def test_an_impossible_state_is_refused_and_any_other_can_be_used(
    kind: str, image: Path, before: list[Step], path: list[int], value: Any, behind: list[Step]
) -> None:
    one = Model(kind, image).run()
    for step in before:
        one.step(step)
    hostile = mutate(one.save(), path, value)
    other = Model(kind, image).run()
    was = other.save()
    try:
        other.device.restore(hostile)
    except InvalidArgument:
        assert other.save() == was
        return
    for step in behind:
        other.step(step)
    Model(kind, image, other.save()).run()


def state_of(device: Device, **changes: Any) -> Any:
    saved = device.save()
    saved["state"] |= changes
    return saved


def test_the_states_of_models_and_versions_are_not_mixed_up(image: Path) -> None:
    uart = Uart(lambda _: None)
    with pytest.raises(InvalidArgument, match="model is 'Rtc', and not 'Uart'"):
        uart.restore(Rtc().save())
    with pytest.raises(InvalidArgument, match="version is 2, and not 1"):
        uart.restore(uart.save() | {"version": 2})
    small = image.with_name("small.img")
    small.write_bytes(bytes(SECTOR))
    with pytest.raises(InvalidArgument, match=r"state.capacity is 8, and not 1, the file's capacity"):
        BlockDevice(small).restore(BlockDevice(image).save())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"received": [[65, 0]] * 2}, "at most 1 characters"),
        ({"fcr": 0xC0}, "0 without FIFOs"),
        ({"transmitted": [65]}, "state.shifting is None"),
        ({"lcr": 256}, "state.lcr is 256, and not a number from 0 to 255"),
        ({"lcr": True}, "state.lcr is True"),
        ({"timeout": 1}, "and not true or false"),
        ({"colour": 1}, "an object of lcr, divisor"),
        ({"received": [[65, 1]]}, r"state.received\[0\]\[1\] is 1, and not a combination of the bits 0x1c"),
        ({"divisor": 10**5000}, "a very long number"),
    ],
)
def test_a_refused_state_is_refused_with_a_reason(changes: dict[str, Any], why: str) -> None:
    uart = Uart(lambda _: None)
    with pytest.raises(InvalidArgument, match=why):
        uart.restore(state_of(uart, **changes))


def test_a_transmitter_without_its_timer_goes_on() -> None:
    sent: list[bytes] = []
    uart = Uart(lambda data: sent.append(data))
    uart.restore(state_of(uart, shifting=65, transmitted=[]))
    Bench(uart).advance(1)
    assert sent == [b"A"]


def test_a_saved_clock_runs_on_and_its_alarm_goes_off() -> None:
    wall = [WALL]
    rtc = Rtc(clock=lambda: wall[0])
    bench = Bench(rtc)
    bench.write(0x70, 0x0B)
    bench.write(0x71, 0x22)  # the alarm's interrupt
    for alarm in (1, 3, 5):
        bench.write(0x70, alarm)
        bench.write(0x71, 0xFF)  # an alarm every second
    assert not bench.level(8)
    saved = rtc.save()
    wall[0] += 3600
    moved = Rtc(clock=lambda: wall[0])
    moved.restore(saved)
    bench = Bench(moved, now=5.0)
    assert bench.level(8)
    wanted = Rtc(clock=lambda: wall[0])
    Bench(wanted)
    moved.index = wanted.index = 4
    assert moved.read(1, 1) == wanted.read(1, 1)


def test_the_time_that_a_guest_has_set_moves_with_it() -> None:
    wall = [WALL]
    rtc = Rtc(clock=lambda: wall[0])
    bench = Bench(rtc)
    for register, value in ((9, 0x99), (0x37, 0x19)):
        bench.write(0x70, register)
        bench.write(0x71, value)
    moved = Rtc(clock=lambda: wall[0] + 1)
    moved.restore(rtc.save())
    bench = Bench(moved, now=77.0)
    bench.write(0x70, 9)
    assert bench.read(0x71) == 0x99


class Own(Device):
    """A user's device with everything that a device can save."""

    STATE: ClassVar[Fields] = {"rung": Number(0, 255)}

    def __init__(self) -> None:
        super().__init__("own")
        self.rung = 0
        self.interrupt: OutputLine = self.line(5)
        self.alarm: Timer = self.timer(self.expired)
        self.expiries = 0

    def expired(self) -> None:
        self.expiries += 1


def test_lines_and_timers_of_a_users_device_are_saved() -> None:
    own = Own()
    bench = Bench(own)
    own.rung = 7
    own.interrupt.set(True)
    own.alarm.start(1.0)
    bench.advance(0.25)
    moved = Own()
    moved.restore(json.loads(json.dumps(own.save())))
    assert (moved.rung, moved.interrupt.level) == (7, True)
    bench = Bench(moved, now=5.0)
    bench.advance(0.5)
    assert moved.expiries == 0
    bench.advance(0.25)
    assert moved.expiries == 1

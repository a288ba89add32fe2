"""An arm64 vCPU on Unicorn with the daemon's GIC and timers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client import Architecture, Client, GicHost, GuestError, InvalidArgument, MpState, NotFound, SessionClosed
from irqchip_client.arm64 import CPU_INTERFACE, DISTRIBUTOR, REDISTRIBUTORS, SYSREGS, ppi, spi
from irqchip_client.unicorn import Alone, Arm64Start, GuestMemory, UnicornArm64Vcpu
from tests.waiting import PATIENCE

RAM = 0x4000_0000
ENTRY, VECTORS, COUNTS = RAM + 0x1000, RAM + 0x4000, RAM + 0x9000
IRQ, FIQ, SYNCHRONOUS = VECTORS + 0x280, VECTORS + 0x300, VECTORS + 0x200
DEVICE = 0x0A00_0000
SPI = 4
CTLR, IGROUPR, ISENABLER, ICFGR, ITARGETSR, IROUTER = 0x000, 0x080, 0x100, 0xC00, 0x800, 0x6000
SGI_FRAME = 0x1_0000

# x0 VECTORS, x1 COUNTS, x2 the GICv2's CPU interface or a timer's period, x3 DEVICE
SET_UP = bytes.fromhex(
    "00c018d5"  # msr vbar_el1, x0
    "04084091"  # add x4, x0, #0x2, lsl #12
    "9f000091"  # mov sp, x4
)
OPEN = bytes.fromhex(
    "ff4303d5"  # msr daifclr, #0x3
)
SPIN = bytes.fromhex(
    "00000014"  # b 0
)
SLEEP = bytes.fromhex(
    "7f2003d5"  # wfi
    "ffffff17"  # b 0
)
OFF = bytes.fromhex(
    "00018052"  # mov w0, #0x8
    "0080b072"  # movk w0, #0x8400, lsl #16
    "020000d4"  # hvc #0x0
)
CPU_OFF = bytes.fromhex(
    "40008052"  # mov w0, #0x2
    "0080b072"  # movk w0, #0x8400, lsl #16
    "020000d4"  # hvc #0x0
)
WFI_ONCE = bytes.fromhex(
    "7f2003d5"  # wfi
    "e5008052"  # mov w5, #0x7
    "250000b9"  # str w5, [x1]
    "00018052"  # mov w0, #0x8
    "0080b072"  # movk w0, #0x8400, lsl #16
    "020000d4"  # hvc #0x0
)
# Keeps what it has acknowledged behind x1, tells the device, ends the interrupt, and counts at x1: then a further edge
# is a further interrupt.
HANDLER_V3 = bytes.fromhex(
    "15cc38d5"  # mrs x21, icc_iar1_el1
    "350400b9"  # str w21, [x1, #4]
    "7f0000b9"  # str wzr, [x3]
    "35cc18d5"  # msr icc_eoir1_el1, x21
    "340040b9"  # ldr w20, [x1]
    "94060011"  # add w20, w20, #0x1
    "340000b9"  # str w20, [x1]
    "e0039fd6"  # eret
)
HANDLER_V3_GROUP_0 = bytes.fromhex(
    "15c838d5"  # mrs x21, icc_iar0_el1
    "350400b9"  # str w21, [x1, #4]
    "7f0000b9"  # str wzr, [x3]
    "35c818d5"  # msr icc_eoir0_el1, x21
    "340040b9"  # ldr w20, [x1]
    "94060011"  # add w20, w20, #0x1
    "340000b9"  # str w20, [x1]
    "e0039fd6"  # eret
)
HANDLER_V2 = bytes.fromhex(
    "550c40b9"  # ldr w21, [x2, #12]
    "350400b9"  # str w21, [x1, #4]
    "7f0000b9"  # str wzr, [x3]
    "551000b9"  # str w21, [x2, #16]
    "340040b9"  # ldr w20, [x1]
    "94060011"  # add w20, w20, #0x1
    "340000b9"  # str w20, [x1]
    "e0039fd6"  # eret
)
# Counts, sets the timer anew, and turns the machine off at the 200th tick.
TICK = bytes.fromhex(
    "340040b9"  # ldr w20, [x1]
    "94060011"  # add w20, w20, #0x1
    "340000b9"  # str w20, [x1]
    "15cc38d5"  # mrs x21, icc_iar1_el1
    "56e03bd5"  # mrs x22, cntvct_el0
    "d602028b"  # add x22, x22, x2
    "56e31bd5"  # msr cntv_cval_el0, x22
    "35cc18d5"  # msr icc_eoir1_el1, x21
    "9f220371"  # cmp w20, #0xc8
    "42000054"  # b.cs 2c
    "e0039fd6"  # eret
    "00018052"  # mov w0, #0x8
    "0080b072"  # movk w0, #0x8400, lsl #16
    "020000d4"  # hvc #0x0
)
START_TIMER = bytes.fromhex(
    "44e03bd5"  # mrs x4, cntvct_el0
    "8400028b"  # add x4, x4, x2
    "44e31bd5"  # msr cntv_cval_el0, x4
    "240080d2"  # mov x4, #0x1
    "24e31bd5"  # msr cntv_ctl_el0, x4
)
SEND_SGI = bytes.fromhex(
    "240080d2"  # mov x4, #0x1
    "0460a0f2"  # movk x4, #0x300, lsl #16
    "a4cb18d5"  # msr icc_sgi1r_el1, x4
)
READ_IAR = bytes.fromhex(
    "04cc38d5"  # mrs x4, icc_iar1_el1
)
READ_DEVICE = bytes.fromhex(
    "640040b9"  # ldr w4, [x3]
    "00000014"  # b 4
)
JUMP_AWAY = bytes.fromhex(
    "60001fd6"  # br x3
)


class Devices:
    """The local device at DEVICE: irqchip_client.unicorn.LocalDevices."""

    def __init__(self) -> None:
        self.written: Callable[[], object] = lambda: None
        self.failure: Exception | None = None

    def pio_read(self, port: int, size: int) -> int | None:  # noqa: ARG002 - of LocalDevices
        return None

    def pio_write(self, port: int, value: int, size: int) -> bool:  # noqa: ARG002
        return False

    def mmio_read(self, address: int, size: int) -> int | None:  # noqa: ARG002
        if address == DEVICE and self.failure is not None:
            raise self.failure
        return None

    def mmio_write(self, address: int, value: int, size: int) -> bool:  # noqa: ARG002
        if address != DEVICE:
            return False
        self.written()
        return True


class Machine:
    """A VM with one vCPU, whose GIC lets the vCPU get SPI 4, SGI 3 and the virtual timer's PPI."""

    def __init__(self, client: Client, version: int) -> None:
        self.version = version
        self.vm = client.create_vm(architecture=Architecture.ARM64, gic=GicHost(version=version))
        self.daemon = self.vm.create_vcpu(0)
        self.daemon.init()
        self.vm.create_gic(version)
        self.memory = GuestMemory(1 << 16, start=RAM)
        self.devices = Devices()
        self.turned_off = 0
        power = Alone(turned_off=self._turn_off)
        self.cpu = UnicornArm64Vcpu(self.memory, self.vm, 0, local=self.devices, power=power)
        self.set_up_gic()

    def _turn_off(self) -> None:
        self.turned_off += 1

    def set_up_gic(self, group: int = 1, *, edge: bool = True) -> None:
        intid = 32 + SPI
        if self.version == 3:
            redistributor = REDISTRIBUTORS + SGI_FRAME
            bits = 0xFFFF_FFFF * group
            for address, value in (
                *((DISTRIBUTOR + CTLR, 0x13), (redistributor + IGROUPR, bits), (DISTRIBUTOR + IGROUPR + 4, bits)),
                *((redistributor + ISENABLER, 1 << 27 | 1 << 3), (DISTRIBUTOR + IROUTER + 8 * intid, 0)),
            ):
                self.daemon.mmio_write(address, value, 4)
            for name, value in (("ICC_SRE_EL1", 1), ("ICC_PMR_EL1", 0xF0), (f"ICC_IGRPEN{group}_EL1", 1)):
                self.daemon.sysreg_write(SYSREGS[name], value)
        else:
            for address, value in (
                *((DISTRIBUTOR + CTLR, 1), (DISTRIBUTOR + ISENABLER, 1 << 27 | 1 << 3), (CPU_INTERFACE + 4, 0xF0)),
                *((DISTRIBUTOR + ITARGETSR + intid // 4 * 4, 0x0101_0101), (CPU_INTERFACE, 1)),
            ):
                self.daemon.mmio_write(address, value, 4)
        self.daemon.mmio_write(DISTRIBUTOR + ICFGR + intid // 16 * 4, 2 * edge << 2 * (intid % 16), 4)
        self.daemon.mmio_write(DISTRIBUTOR + ISENABLER + 4, 1 << SPI, 4)

    def start(self, code: bytes, handler: bytes | None = None, *, at: int = IRQ, x2: int = CPU_INTERFACE) -> None:
        self.memory.write(ENTRY, SET_UP + code)
        self.memory.write(at, handler or (HANDLER_V3 if self.version == 3 else HANDLER_V2))
        self.cpu.start(Arm64Start(ENTRY, VECTORS, COUNTS, x2, DEVICE))

    def word(self, number: int) -> int:
        return int.from_bytes(self.memory.read(COUNTS + 4 * number, 4), "little")

    def await_count(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.word(0) < count and time.monotonic() < deadline:
            time.sleep(0.002)
        assert self.word(0) == count

    @contextmanager
    def running(self) -> Iterator[None]:
        """run() in a thread of its own, stopped at the end of the `with`."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                self.cpu.run()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self.cpu.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if raised:
            raise raised[0]

    def close(self) -> None:
        self.cpu.close()
        self.memory.close()


@pytest.fixture(params=[3])
def machine(request: pytest.FixtureRequest, irqchip_client: Client) -> Iterator[Machine]:
    machine = Machine(irqchip_client, request.param)
    yield machine
    machine.close()


both = pytest.mark.parametrize("machine", [2, 3], indirect=True, ids=["GICv2", "GICv3"])


# SPIs.


@both
@pytest.mark.parametrize("waits", [SPIN, SLEEP], ids=["running", "in WFI"])
def test_each_edge_of_an_spi_interrupts_once(machine: Machine, waits: bytes) -> None:
    machine.start(OPEN + waits)
    with machine.running():
        for count in range(1, 6):
            machine.vm.line(spi(SPI)).pulse()
            machine.await_count(count)
        time.sleep(0.02)
    assert machine.word(0) == 5
    assert machine.word(1) == 32 + SPI


@both
def test_a_level_interrupts_until_the_handler_lowers_it(machine: Machine) -> None:
    machine.set_up_gic(edge=False)
    line = machine.vm.line(spi(SPI))
    left = [3]

    def written() -> None:
        left[0] -= 1
        if left[0] <= 0:
            line.lower()

    machine.devices.written = written
    machine.start(OPEN + SLEEP)
    with machine.running():
        line.raise_()
        machine.await_count(3)
        time.sleep(0.02)
    assert machine.word(0) == 3


@both
def test_an_interrupt_that_came_before_run_is_taken(machine: Machine) -> None:
    machine.vm.line(spi(SPI)).pulse()
    machine.start(OPEN + SPIN)
    with machine.running():
        machine.await_count(1)


@both
def test_a_masked_interrupt_ends_wfi_and_does_not_enter_its_vector(machine: Machine) -> None:
    machine.start(WFI_ONCE)
    with machine.running():
        time.sleep(0.05)
        assert machine.word(0) == 0
        machine.vm.line(spi(SPI)).pulse()
        machine.await_count(7)


def test_group_0_of_a_gicv3_is_an_fiq(machine: Machine) -> None:
    machine.set_up_gic(group=0)
    machine.start(OPEN + SLEEP, HANDLER_V3_GROUP_0, at=FIQ)
    with machine.running():
        machine.vm.line(spi(SPI)).pulse()
        machine.await_count(1)
    assert machine.word(1) == 32 + SPI


# Private interrupts.


def test_the_virtual_timer_ticks_200_times(machine: Machine) -> None:
    machine.start(START_TIMER + OPEN + SLEEP, TICK, x2=62_500)  # 1 ms
    machine.cpu.run()
    assert machine.word(0) == 200
    assert machine.turned_off == 1


def test_a_guest_interrupts_itself_by_an_sgi(machine: Machine) -> None:
    machine.start(OPEN + SEND_SGI + SPIN)
    with machine.running():
        machine.await_count(1)
    assert machine.word(1) == 3


def test_a_private_interrupt_of_a_device(machine: Machine) -> None:
    machine.daemon.mmio_write(REDISTRIBUTORS + SGI_FRAME + ISENABLER, 1 << 20, 4)
    line = machine.vm.line(ppi(0, 20))
    machine.devices.written = line.lower
    machine.start(OPEN + SLEEP)
    with machine.running():
        line.raise_()
        machine.await_count(1)
    assert machine.word(1) == 20


# What ends run().


def test_the_machine_is_turned_off(machine: Machine) -> None:
    machine.start(OFF)
    machine.cpu.run()
    assert machine.turned_off == 1


def test_a_vcpu_that_turns_itself_off_is_stopped_until_it_is_started(machine: Machine) -> None:
    machine.start(CPU_OFF)
    machine.cpu.run()
    assert machine.daemon.mp_state() is MpState.STOPPED
    assert machine.turned_off == 0
    with machine.running():
        machine.vm.line(spi(SPI)).pulse()
        time.sleep(0.05)
    assert machine.word(0) == 0
    machine.start(OPEN + SLEEP)
    assert machine.daemon.mp_state() is MpState.RUNNABLE
    with machine.running():
        machine.await_count(1)


def test_ram_that_no_address_of_a_guest_reaches_is_refused(machine: Machine) -> None:
    with (
        GuestMemory(1 << 16, start=1 << 40) as memory,
        pytest.raises(InvalidArgument, match="RAM ends at 0x10000000000 at most"),
    ):
        UnicornArm64Vcpu(memory, machine.vm, 0)


@pytest.mark.parametrize("waits", [SPIN, SLEEP], ids=["running", "in WFI"])
def test_stop_ends_run_and_a_later_run_goes_on(machine: Machine, waits: bytes) -> None:
    machine.start(OPEN + waits)
    for count in range(1, 4):
        with machine.running():
            machine.vm.line(spi(SPI)).pulse()
            machine.await_count(count)


@pytest.mark.parametrize("waits", [SPIN, SLEEP], ids=["running", "in WFI"])
def test_the_vms_deletion_ends_run(machine: Machine, waits: bytes) -> None:
    machine.start(waits)
    deletion = threading.Timer(0.05, machine.vm.delete)
    deletion.start()
    with pytest.raises((SessionClosed, NotFound)):
        machine.cpu.run()


def test_a_local_devices_exception_ends_run(machine: Machine) -> None:
    machine.devices.failure = OSError("broken")
    machine.start(READ_DEVICE)
    with pytest.raises(OSError, match="broken"):
        machine.cpu.run()


def test_code_outside_of_ram_is_an_error_that_says_where(machine: Machine) -> None:
    machine.start(JUMP_AWAY)
    with pytest.raises(GuestError, match=r"vCPU 0 can't go on: .* at 0xa000000 at EL1"):
        machine.cpu.run()


@pytest.mark.parametrize("machine", [2], indirect=True, ids=["GICv2"])
def test_a_gicv2_has_no_system_registers(machine: Machine) -> None:
    machine.start(READ_IAR, OFF, at=SYNCHRONOUS)
    machine.cpu.run()
    assert machine.turned_off == 1


def test_start_begins_anew(machine: Machine) -> None:
    machine.start(OPEN + SLEEP)
    with machine.running():
        machine.vm.line(spi(SPI)).pulse()
        machine.await_count(1)
    machine.start(WFI_ONCE)  # Interrupts are masked again.
    with machine.running():
        machine.vm.line(spi(SPI)).pulse()
        machine.await_count(7)

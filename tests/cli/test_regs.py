"""regs, and the text it prints."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import Result

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import (
    Client,
    DeliveryMode,
    IoapicState,
    LapicState,
    PicState,
    PitChannel,
    PitState,
    RedirectionEntry,
    Vm,
)
from irqchip_client.cli.dump import dump_ioapic, dump_lapic, dump_pic, dump_pit
from tests.cli.conftest import Run


def lapic(**registers: object) -> LapicState:
    return replace(LapicState.from_kvm_struct(bytes(1024)), **registers)  # type: ignore[arg-type]


def test_a_pic_as_info_pic_shows_it() -> None:
    pic = PicState(irr=0x01, imr=0xFB, isr=0x10, priority_add=3, irq_base=0x20, read_reg_select=1, elcr=0x0C)
    assert dump_pic("pic0", pic) == "pic0: irr=01 imr=fb isr=10 hprio=3 irq_base=20 rr_sel=1 elcr=0c fnm=0"


def test_a_pic_s_unusual_modes_are_named() -> None:
    pic = PicState(init_state=2, auto_eoi=1, special_fully_nested_mode=1)
    assert dump_pic("pic1", pic).splitlines()[1:] == ["  expects ICW3, auto-EOI"]


def test_an_ioapic_as_info_pic_shows_it() -> None:
    entries = list(IoapicState().entries)
    entries[4] = RedirectionEntry(vector=0x34, level_triggered=True, active_low=True, remote_irr=True, destination=1)
    entries[23] = RedirectionEntry(
        vector=255, delivery_mode=DeliveryMode.LOWEST_PRIORITY, logical=True, masked=True, pending=True, destination=255
    )
    lines = dump_ioapic(IoapicState(ioregsel=0x10, id=2, irr=1 << 4 | 1 << 9, entries=tuple(entries))).splitlines()
    assert lines[0] == "ioapic0: ver=0x11 id=0x02 sel=0x10"
    assert lines[1] == "  pin 0  0x0000000000010000 dest=0   vec=0   active-hi edge  masked fixed  physical"
    assert lines[5] == "  pin 4  0x010000000000e034 dest=1   vec=52  active-lo level        fixed  physical"
    assert lines[24] == "  pin 23 0xff000000000119ff dest=255 vec=255 active-hi edge  masked lowest logical  pending"
    assert lines[25:] == ["  IRR        4 9", "  Remote IRR 4"]


def test_a_lapic_as_info_lapic_shows_it() -> None:
    state = lapic(
        lvt_lint0=0x8700,
        lvt_lint1=0x400,
        lvt_performance=0x10000,
        lvt_error=0x10FE,
        lvt_thermal=0x12000,
        lvt_timer=0x200EC,
        timer_divide=0xB,
        timer_initial_count=1000,
        timer_current_count=7,
        svr=0x1FF,
        icr=0xC4031,
        icr2=0x1000000,
        esr=0x40,
        isr=(0x31,),
        irr=(0x31, 0x41),
        tmr=(0x41,),
        tpr=0x20,
        ppr=0x30,
        dfr=0xFFFFFFFF,
        ldr=0x1000000,
    )
    assert dump_lapic(3, state).splitlines() == [
        "dumping local APIC state for CPU 3",
        "",
        "LVT0     0x00008700 active-hi level                             extINT (vec 0)",
        "LVT1     0x00000400 active-hi edge                              NMI",
        "LVTPC    0x00010000 active-hi edge  masked                      fixed  (vec 0)",
        "LVTERR   0x000010fe active-hi edge         pending              fixed  (vec 254)",
        "LVTTHMR  0x00012000 active-lo edge  masked                      fixed  (vec 0)",
        "LVTT     0x000200ec active-hi edge                 periodic     fixed  (vec 236)",
        "Timer    DCR=0xb (divide by 1) initial_count = 1000 current_count = 7",
        "SPIV     0x000001ff APIC enabled, focus=off, spurious vec 255",
        "ICR      0x000c4031 physical edge assert all fixed (vec 49)",
        "ICR2     0x01000000",
        "ESR      0x00000040",
        "ISR      49",
        "IRR      49 65 (level)",
        "",
        "APR 0x00 TPR 0x20 DFR 0x0f LDR 0x01 PPR 0x30",
    ]


def test_a_vcpus_run_state_and_its_lapics_mode() -> None:
    vcpu = pb.VcpuSnapshot(mp_state=pb.MP_STATE_RUNNABLE, apic_base=0xFEE00900)
    lines = dump_lapic(0, lapic(), vcpu).splitlines()
    assert lines[2:4] == ["STATE    runnable", "BASE     0xfee00900 xAPIC, boot CPU"]
    vcpu = pb.VcpuSnapshot(mp_state=pb.MP_STATE_INIT_RECEIVED, init=True, sipi_vector=0, nmis=2, smi=True)
    vcpu.apic_base = 0xFEE00000
    vcpu.queued.add(vector=0x31)
    vcpu.queued.add(vector=0x41)
    vcpu.external_vector = 8
    assert dump_lapic(1, lapic(), vcpu).splitlines()[2:4] == [
        "STATE    wait for SIPI; to take: INIT, SIPI (page 0x00), SMI, NMI (2), accepted interrupt (vec 49),"
        " accepted interrupt (vec 65), external interrupt (vec 8)",
        "BASE     0xfee00000 disabled",
    ]


def test_an_x2apic_has_wide_ids() -> None:
    vcpu = pb.VcpuSnapshot(mp_state=pb.MP_STATE_HALTED, apic_base=0xFEE00C00)
    text = dump_lapic(17, lapic(icr2=300, ldr=0x10002, dfr=0xFFFFFFFF), vcpu)
    assert "STATE    halted\nBASE     0xfee00c00 x2APIC\n" in text
    assert "ICR2     0x0000012c cpu 300\n" in text
    assert "LDR 0x00010002 (cluster 1: id 2)" in text


@pytest.mark.parametrize(
    ("lvt", "line"),
    [
        (0x31, "         expires in 1.5ms"),
        (0x20031, "         expires in 1.5ms, and then every 10ms"),
        (0x40031, "         expires in 1.5ms, at TSC 4242"),
    ],
)
def test_a_timer_that_runs_says_when_it_expires(lvt: int, line: str) -> None:
    vcpu = pb.VcpuSnapshot(timer_expires_ns=2_500_000, timer_period_ns=10_000_000, tsc_deadline=4242)
    lines = dump_lapic(0, lapic(lvt_timer=lvt), vcpu, now_ns=1_000_000).splitlines()
    assert lines[lines.index(line) - 1].startswith("Timer    DCR=")
    assert "expire" not in dump_lapic(0, lapic(lvt_timer=lvt), pb.VcpuSnapshot())


def test_a_timer_whose_expiry_is_masked_says_so() -> None:
    text = dump_lapic(0, lapic(lvt_timer=0x10031), pb.VcpuSnapshot(timer_pending=True))
    assert "\n         expired while it was masked\n" in text


def test_a_pit_that_has_not_been_programmed() -> None:
    assert dump_pit(PitState()).splitlines() == [
        "pit0: flags=00",
        "  channel 0 mode=255 (not programmed) access=none count=65536 gate=1",
        "  channel 1 mode=255 (not programmed) access=none count=65536 gate=1",
        "  channel 2 mode=255 (not programmed) access=none count=65536 gate=0",
    ]


def test_a_pit_with_a_latched_or_half_read_count() -> None:
    timer = PitChannel(count=11932, mode=2, rw_mode=3, status_latched=1, status=0xB4, read_state=4)
    other = PitChannel(count=1, mode=0, rw_mode=1, count_latched=3, latched_count=7, write_state=4, write_latch=0x9C)
    speaker = PitChannel(count=1193, mode=3, rw_mode=2, bcd=1)
    assert dump_pit(PitState((timer, other, speaker), flags=3)).splitlines() == [
        "pit0: flags=03, channel 0 stopped for an HPET, speaker data on",
        "  channel 0 mode=2 (rate generator) access=low/high count=11932 (100.00 Hz) gate=1",
        "    status b4 latched: OUT high, low half read, the high one awaited",
        "  channel 1 mode=0 (interrupt on terminal count) access=low count=1 gate=1",
        "    count 7 latched, low half 9c written, the high one awaited",
        "  channel 2 mode=3 (square wave) access=high count=1193 (1000.15 Hz) gate=1",
        "    BCD, which KVM does not act on",
    ]


def test_a_pits_ticks() -> None:
    timer = pb.PitSnapshot(running=True, reinject=True, pending=3, expires_ns=25_000_000)
    assert dump_pit(PitState(), timer, 20_000_000).startswith("pit0: flags=00, next tick in 5ms, 3 ticks wait\n")
    late = pb.PitSnapshot(running=True, expires_ns=1)
    assert dump_pit(PitState(), late, 2).startswith("pit0: flags=00, next tick in 0ns, lost ticks are not reinjected\n")


@pytest.mark.parametrize(("divide", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_timer_s_divider(divide: int, by: int) -> None:
    assert f"(divide by {by})" in dump_lapic(0, lapic(timer_divide=divide))


def test_a_logical_destination_and_a_cluster() -> None:
    text = dump_lapic(0, lapic(icr=0x800, icr2=0x23000000, dfr=0x0FFFFFFF, ldr=0x21000000))
    assert "ICR2     0x23000000 mask 0x23\n" in text
    assert "DFR 0x00 LDR 0x21 (cluster 2: id 1)" in text


def test_many_vectors_are_wrapped() -> None:
    lines = dump_lapic(0, lapic(irr=tuple(range(16, 256)), tmr=tuple(range(16, 256)))).splitlines()
    assert max(map(len, lines)) <= 100
    first = next(at for at, line in enumerate(lines) if line.startswith("IRR"))
    vectors = " ".join(lines[first:-2]).split()
    assert vectors[1::2] == [str(vector) for vector in range(16, 256)]
    assert all(line.endswith("(level)") for line in lines[first:-2])


def test_regs_shows_the_vm_s_chips(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFB)
    vm.vcpu(1).mmio_write(0xFEE00080, 0x30)
    vm.line(0).raise_()
    lines = run("regs", vm.name).stdout.splitlines()
    assert lines[0] == "pic0: irr=01 imr=fb isr=00 hprio=0 irq_base=00 rr_sel=0 elcr=00 fnm=0"
    assert lines[1].startswith("pic1: irr=00 imr=00")
    assert lines[2] == "ioapic0: ver=0x11 id=0x00 sel=0x00"
    assert [line for line in lines if line.startswith("dumping")] == [
        f"dumping local APIC state for CPU {vcpu}" for vcpu in (0, 1)
    ]
    assert [line.split()[3] for line in lines if line.startswith("APR")] == ["0x00", "0x30"]
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)


def test_regs_of_one_kind_of_chip(run: Run, vm: Vm) -> None:
    assert [line[:4] for line in run("regs", vm.name, "--chip", "pic").stdout.splitlines()] == ["pic0", "pic1"]
    assert run("regs", vm.name, "--chip", "ioapic").stdout.startswith("ioapic0: ")
    lapics = run("regs", vm.name, "--chip", "lapic").stdout.splitlines()
    assert lapics[:4] == [
        *["dumping local APIC state for CPU 0", "", "STATE    runnable", "BASE     0xfee00900 xAPIC, boot CPU"]
    ]
    assert lapics[len(lapics) // 2 + 2] == "STATE    uninitialized"


def test_regs_raw_is_the_kernel_s_bytes(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFB)
    assert run("regs", vm.name, "--chip", "pic", "--raw").stdout.splitlines() == [
        "pic0: struct kvm_pic_state",
        "  000  00 00 fb 00 00 00 00 00 00 00 00 00 00 00 00 f8",
        "pic1: struct kvm_pic_state",
        "  000  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 de",
    ]
    lines = run("regs", vm.name, "--chip", "lapic", "--raw").stdout.splitlines()
    assert lines[0] == "lapic0: struct kvm_lapic_state"
    assert lines[1 + 3] == "  030  14 00 05 00 00 00 00 00 00 00 00 00 00 00 00 00"  # The version register.
    assert len(lines) == 2 * 65


def test_regs_shows_a_pit_that_ticks(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    vm.create_pit()
    cpu = vm.create_vcpu(0)
    for port, value in [(0x43, 0x34), (0x40, 11932 & 0xFF), (0x40, 11932 >> 8)]:
        cpu.pio_write(port, value)
    lines = run("regs", vm.name).stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("pit0: flags=00, next tick in "))
    assert lines[at + 1] == "  channel 0 mode=2 (rate generator) access=low/high count=11932 (100.00 Hz) gate=1"
    raw = run("regs", vm.name, "--chip", "pit", "--raw").stdout.splitlines()
    assert raw[0] == "pit0: struct kvm_pit_state2"
    assert len(raw) == 1 + 112 // 16


def test_regs_of_a_split_irqchip_are_its_local_apics(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip()
    vm.create_vcpu(0)
    assert run("regs", vm.name).stdout.startswith("dumping local APIC state for CPU 0\n")


def test_regs_without_a_pit(run: Run, fails: Callable[[Result], str], vm: Vm) -> None:
    assert "pit0" not in run("regs", vm.name).stdout
    refusal = f"VM '{vm.name}' has no PIT: `irqchipctl create --pit` makes a VM that has one"
    assert fails(run("regs", vm.name, "--chip", "pit")) == refusal


def test_regs_without_an_irqchip(run: Run, fails: Callable[[Result], str], irqchip_client: Client) -> None:
    bare = irqchip_client.create_vm()
    assert fails(run("regs", bare.name)).endswith("has no irqchip; create it first (ENXIO)")


@pytest.mark.parametrize("chip", ["pic", "ioapic", "pit"])
def test_regs_of_a_split_irqchip_does_not_say_to_create_one(
    run: Run, fails: Callable[[Result], str], irqchip_client: Client, chip: str
) -> None:
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip()
    line = fails(run("regs", vm.name, "--chip", chip))
    assert line.endswith(f"VM '{vm.name}' has a split irqchip: its PICs, IOAPIC and PIT are the VMM's (ENXIO)")


def test_regs_without_vcpus_says_so(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip()
    for options in ([], ["--chip", "lapic"], ["--raw"]):
        result = run("regs", vm.name, *options)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"VM '{vm.name}' has no vCPUs, and so no local APICs\n"

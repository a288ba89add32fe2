"""irqchipctl with an s390 VM."""

from __future__ import annotations

import json

from irqchip_client import AdapterRoute, Client, InterruptMasks, S390Irq, S390IrqType, Space, VcpuReset
from irqchip_client.s390 import FlicGroup, adapter_registration
from tests.cli.conftest import Run

EMERGENCY = S390Irq.make(S390IrqType.EMERGENCY, code=0)


def test_an_s390_vm_is_made_with_a_flic(run: Run, irqchip_client: Client) -> None:
    assert run("create", "mainframe", "--arch", "s390", "--vcpus", "2").exit_code == 0
    vm = irqchip_client.vm("mainframe")
    assert vm.info().vcpus == (0, 1)
    assert run("show", "mainframe").output.splitlines()[:3] == [
        "VM        mainframe",
        "arch      s390",
        "irqchip   full",
    ]
    assert "TSC" not in run("show", "mainframe").output
    assert vm.device(0).get_bytes(FlicGroup.GET_ALL_IRQS, 4096, b"") == b""


def test_regs_shows_interrupts_adapters_and_masks(run: Run, irqchip_client: Client) -> None:
    run("create", "mainframe", "--arch", "s390", "--vcpus", "1")
    vm = irqchip_client.vm("mainframe")
    vm.device(0).set(FlicGroup.ADAPTER_REGISTER, 0, adapter_registration(1, 3, maskable=True, swap=True))
    vm.device(0).set(FlicGroup.AIRQ_INJECT, 1)
    vm.s390_interrupt(S390IrqType.SERVICE, 0x1001)
    vm.s390_interrupt(S390IrqType.MACHINE_CHECK, 1 << 28, 5)
    vm.vcpu(0).set_interrupt_masks(InterruptMasks(cr6=0xA000_0000, psw_mask=1 << 57))
    vm.vcpu(0).set_irq_state([EMERGENCY, S390Irq.make(S390IrqType.SET_PREFIX, address=0x2000)])
    assert run("regs", "mainframe").output.splitlines() == [
        "flic: 3 floating interrupts, no ais",
        "  adapter, ISC 3, io_int_word 0x98000000",
        "  service, ext_params 0x1001",
        "  machine check, cr14 0x10000000, mcic 0x5",
        "adapter1: ISC 3, maskable, swap",
        "vcpu0: stopped",
        "  psw=0200000000000000 I/O",
        "  cr0=00000000000000e0 -",
        "  cr6=00000000a0000000 ISC 0 2",
        "  cr14=00000000c2000000",
        "  pending: set prefix, address 0x2000",
        "  pending: emergency, code 0x0",
    ]
    shown = json.loads(run("regs", "mainframe", "--json").output)
    assert [irq["text"] for irq in shown["flic"]["interrupts"]][1:] == [
        "service, ext_params 0x1001",
        "machine check, cr14 0x10000000, mcic 0x5",
    ]
    assert shown["vcpu0"]["cr6"] == 0xA000_0000
    assert "none of these chips" in run("regs", "mainframe", "--chip", "pic").output
    vm.vcpu(0).reset(VcpuReset.CLEAR)


def test_every_kind_of_a_vcpus_interrupt_is_shown(run: Run, irqchip_client: Client) -> None:
    run("create", "mainframe", "--arch", "s390", "--vcpus", "1")
    vcpu = irqchip_client.vm("mainframe").vcpu(0)
    kinds = S390IrqType
    irqs = [
        S390Irq.make(kinds.RESTART),
        S390Irq.make(kinds.CPU_TIMER),
        S390Irq.make(kinds.CLOCK_COMPARATOR),
        S390Irq.make(kinds.PFAULT_INIT, ext_params2=7),
        S390Irq.make(kinds.EXTERNAL_CALL, code=0),
        S390Irq.make(kinds.PROGRAM, code=1, flags=1),
        S390Irq.make(kinds.MACHINE_CHECK, mcic=1 << 63),
    ]
    vcpu.set_irq_state(irqs)
    lines = run("regs", "mainframe").output.splitlines()
    assert [line for line in lines if "pending" in line] == [f"  pending: {irq}" for irq in irqs]


def test_lines_of_adapters(run: Run, irqchip_client: Client) -> None:
    run("create", "mainframe", "--arch", "s390")
    vm = irqchip_client.vm("mainframe")
    assert "without a route" in run("raise", "mainframe", "5").output
    with vm.session("memory") as session:
        session.register_region(Space.MEMORY, 0, 0x10000)
        session.set_routing([AdapterRoute(5, 0x1000, 0x2000, 3, 1, 1)])
        assert "memory" in run("show", "mainframe").output
        assert "adapter" in run("routes", "mainframe").output
        assert "adapter 1 is not registered" in run("raise", "mainframe", "5").output

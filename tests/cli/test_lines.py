"""raise, lower, pulse, msi, routes."""

from irqchip_client import Chip, MsiRoute, PinRoute, Vm
from tests.cli.conftest import Run


def test_an_edge_reaches_the_vcpu(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFF & ~(1 << 4))
    assert run("pulse", vm.name, 4).stdout == "1 delivered\n"
    assert run("ack", vm.name).stdout == "0x04 pic\n"
    assert run("ack", vm.name).stdout == "none\n"


def test_raise_reports_the_outcome(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFF & ~(1 << 5))
    vm.vcpu(0).pio_write(0x4D0, 1 << 5)  # Level-triggered: a second one is coalesced with the first.
    assert run("raise", vm.name, 5).stdout == "1 delivered\n"
    assert run("raise", vm.name, "0x5").stdout == "0 coalesced with one still pending\n"
    assert run("lower", vm.name, 5).stdout == "2 lowered\n"
    vm.vcpu(0).pio_write(0x21, 0xFF)
    assert run("raise", vm.name, 5).stdout == "-1 masked, at ioapic0's pin 5 and pic0's pin 5\n"


def test_a_gsi_without_a_route_is_not_reported_as_masked(run: Run, vm: Vm) -> None:
    without = "-1 without a route; routes are of GSIs 0, 1, 2, 3, 4, 5, 6, 7, ...\n"
    for command in ("raise", "lower", "pulse"):
        assert run(command, vm.name, 5000).stdout == without
    vm.set_routing([MsiRoute(24, 0xFEEF_F004, 0x131)])
    assert run("pulse", vm.name, 24).stdout == "-1 addressed to no vCPU, by the MSI that is its route\n"
    vm.set_routing([])
    assert run("pulse", vm.name, 24).stdout == "-1 without a route; no GSI has one\n"


def test_several_edges_are_counted_by_outcome(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFF & ~(1 << 4))
    assert run("pulse", vm.name, 4, "--count", 3).stdout.splitlines() == [
        "1 of 3: 1 delivered",
        "2 of 3: 0 coalesced with one still pending",
    ]


def test_msi(run: Run, vm: Vm) -> None:
    assert run("msi", vm.name, "0xfee00000", "0x31").stdout == "0 not accepted\n"  # All local APICs are disabled.
    assert run("msi", vm.name, "0xfeeff004", "0x131").stdout == "-1 addressed to no vCPU\n"  # No local APIC is enabled.
    vm.vcpu(0).mmio_write(0xFEE000F0, 0x1FF)
    assert run("msi", vm.name, "0xfee00000", "0x31").stdout == "1 accepted\n"
    assert run("ack", vm.name).stdout == "0x31 lapic\n"


def test_routes(run: Run, vm: Vm) -> None:
    vm.set_routing([PinRoute(4, Chip.PIC_SECONDARY, 3), PinRoute(4, Chip.IOAPIC, 20), MsiRoute(24, 0xFEE01000, 0x45)])
    assert run("routes", vm.name).stdout.splitlines() == [
        "4\tpic1\tpin 3",
        "4\tioapic0\tpin 20",
        "24\tmsi\taddress 0xfee01000 data 0x45",
    ]

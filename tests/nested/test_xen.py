"""Xen, on the standard KVM and in QEMU: it finds the same machine from the tables, as far as the two are the same."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from tests.debian_kernel import fetch_package, kernel_image
from tests.nested.standard_kvm import QEMU, StandardKvm
from tests.nested.xen import COMMAND_LINE
from tests.this_machine import MissingError, find

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(900)]

PACKAGE = "^xen-hypervisor-[0-9.]+-amd64$"
PATIENCE = 600.0  # seconds; most of it is for a machine that is busy otherwise
# Debian's kernel for clouds is no domain 0, which Xen finds out behind everything that is compared.
END = "Kernel does not support Dom0 operation"
OPTIONS = "-M pc,hpet=off -accel tcg -m 256 -display none -nodefaults -no-reboot -serial stdio"
# What the two machines have in common, in Xen's order.
COMMON = (
    r"\[0000000000000000, 000000000009fbff\] \(usable\)",
    r"\[000000000009fc00, 000000000009ffff\] \(reserved\)",
    r"\[0000000000100000, [0-9a-f]{16}\] \(usable\)",
    r"ACPI: RSDP ",
    r"ACPI: FACP ",
    r"ACPI: DSDT ",
    r"ACPI: FACS ",
    r"ACPI: APIC ",
    r"found SMP MP-table at 000f",
    r"ACPI: PM-Timer IO Port: 0x608 \(24 bits\)",
    r"ACPI: SLEEP INFO: pm1x_cnt\[1:604,1:0\], pm1x_evt\[1:600,1:0\]",
    r"ACPI: Local APIC address 0xfee00000",
    r"ACPI: IOAPIC \(id\[0x00\] address\[0xfec00000\] gsi_base\[0\]\)",
    r"IOAPIC\[0\]: apic_id 0, version \d+, address 0xfec00000, GSI 0-23",
    r"ACPI: INT_SRC_OVR \(bus 0 bus_irq 0 global_irq 2 dfl dfl\)",
    r"ACPI: INT_SRC_OVR \(bus 0 bus_irq 9 global_irq 9 high level\)",
    r"Using ACPI \(MADT\) for SMP configuration information",
    r"SMP: Allowing 1 CPUs \(0 hotplug CPUs\)",
    r"Platform timer is ",
    r"Detected \d+\.\d+ MHz processor",
    r"Enabling APIC mode\.  Using 1 I/O APICs",
    r"ENABLING IO-APIC IRQs",
    r"\.\.TIMER: vector=0xF0 apic1=0 pin1=2 apic2=-1 pin2=-1",
    r"Brought up 1 CPUs",
    r"\*\*\* Building a PV Dom0 \*\*\*",
    END,
)
COMPLAINTS = re.compile(r"mismatch|invalid|BIOS bug|not work|failed", re.IGNORECASE)


@pytest.fixture(scope="module")
def xen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's Xen, as an ELF file."""
    try:
        package = fetch_package(request.config.cache.mkdir("nested"), PACKAGE)
    except MissingError as error:
        pytest.skip(f"Xen is not run {error}")
    (image,) = package.glob("boot/xen-*.gz")
    unpacked = tmp_path_factory.mktemp("xen") / "xen"
    unpacked.write_bytes(gzip.decompress(image.read_bytes()))
    return unpacked


def in_order(log: str) -> list[str]:
    """The patterns of COMMON that are found, each behind the one before it."""
    found, place = [], 0
    for pattern in COMMON:
        if (match := re.compile(pattern).search(log, place)) is not None:
            found.append(pattern)
            place = match.end()
    return found


def test_xen_finds_the_machine_as_in_qemu(xen: Path, standard_kvm: StandardKvm) -> None:
    kernel = kernel_image(standard_kvm.kernel)
    command = [find(QEMU), *OPTIONS.split(), "-kernel", str(xen), "-initrd", str(kernel)]
    command += ["-append", COMMAND_LINE]
    reference = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert in_order(reference.stdout) == list(COMMON), reference.stdout

    done = standard_kvm.run("-m", "tests.nested.xen", str(xen), str(kernel), seconds=PATIENCE, files=[xen, kernel])
    assert in_order(done.output) == list(COMMON), done.output
    complaints = [line for line in done.output.splitlines() if COMPLAINTS.search(line)]
    expected = [line for line in complaints if "levelling caps" in line]  # of the processor, which is QEMU's
    assert complaints == expected
    assert done.status == 0, done.output  # Xen resets the machine by ACPI's reset register

"""The KVM adapter, the demo's guest and the irqchip, on a standard KVM."""

from __future__ import annotations

import pytest

from tests.nested.standard_kvm import StandardKvm

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(900)]

NOT_HERE = (
    "--ignore=tests/kvm/test_kernels.py",  # needs a compiler
    # QEMU's own processor executes the INT, and pushes the address behind it, and 16 * vector + 2 for a gate.
    "--deselect=tests/kvm/test_interrupts.py::test_a_fault_of_an_int_without_a_present_handler_returns_to_the_int",
)
SECONDS, SEED = "60", "1"  # the duration of the comparison, and its first seed
PATIENCE = 600.0  # seconds; most of it is for a machine that is busy otherwise


def test_the_demos_guest_runs_to_its_end(standard_kvm: StandardKvm) -> None:
    done = standard_kvm.run("-m", "tests.nested.guest", seconds=PATIENCE)
    assert done.status == 0, done.output
    assert "ended with status 85" in done.output


def test_the_adapters_tests_pass(standard_kvm: StandardKvm) -> None:
    options = ("-p", "no:cacheprovider", "-m", "not long", *NOT_HERE)  # the long ones measure
    done = standard_kvm.run("-m", "pytest", *options, "tests/kvm", seconds=PATIENCE)
    assert done.status == 0, done.output
    assert " passed" in done.output
    assert " skipped" not in done.output, done.output


def test_its_trace_is_that_of_irqchipctl_line_by_line(standard_kvm: StandardKvm) -> None:
    done = standard_kvm.run("-m", "tests.nested.trace", seconds=PATIENCE, own_clock=False)
    assert done.status == 0, done.output


def test_its_irqchip_answers_like_irqchipd_except_for_known_departures(standard_kvm: StandardKvm) -> None:
    done = standard_kvm.run("-m", "tests.nested.compare", SECONDS, SEED, seconds=PATIENCE, own_clock=False)
    assert done.status == 0, done.output

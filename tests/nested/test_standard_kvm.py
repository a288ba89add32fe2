"""The KVM adapter, the demo's guest on it, and the irqchip, where KVM is the one that everybody has."""

from __future__ import annotations

import pytest

from tests.nested.standard_kvm import StandardKvm

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SECONDS, SEED = "60", "1"  # to compare for, and where the random operations begin
PATIENCE = 600.0  # seconds, of which most is the machine's being busy with others


def test_the_demos_guest_runs_to_its_end(standard_kvm: StandardKvm) -> None:
    done = standard_kvm.run("-m", "tests.nested.guest", seconds=PATIENCE)
    assert done.status == 0, done.output
    assert "ended with status 85" in done.output


def test_the_adapters_tests_pass(standard_kvm: StandardKvm) -> None:
    needs_a_compiler = "--ignore=tests/kvm/test_kernels.py"
    done = standard_kvm.run("-m", "pytest", "-p", "no:cacheprovider", needs_a_compiler, "tests/kvm", seconds=PATIENCE)
    assert done.status == 0, done.output
    assert " passed" in done.output
    assert " skipped" not in done.output, done.output


def test_its_irqchip_answers_as_irqchipd_but_for_what_is_known(standard_kvm: StandardKvm) -> None:
    done = standard_kvm.run("-m", "tests.nested.compare", SECONDS, SEED, seconds=PATIENCE, own_clock=False)
    assert done.status == 0, done.output

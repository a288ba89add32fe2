"""kvm-unit-tests, where its images are at hand, on a standard KVM: irqchipd fails no test that the kernel passes."""

from __future__ import annotations

import pytest

from tests.given_images import given_folder
from tests.nested.kvm_unit_tests import IRQCHIPD, KERNEL, runs
from tests.nested.standard_kvm import StandardKvm

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(1900)]

FOLDER = "IRQCHIPD_KVM_UNIT_TESTS"
IMAGES = ("ioapic", "eventinj", "idt_test", "smptest", "realmode", "apic")
PATIENCE = 1800.0  # seconds; most of it is for a machine that is busy otherwise
ENDED = (1, 3)  # exit statuses: all tests have passed, or some have failed


@pytest.mark.parametrize("vcpus", [1, 2])
def test_irqchipd_fails_no_test_that_the_kernel_passes(standard_kvm: StandardKvm, vcpus: int) -> None:
    folder = given_folder(FOLDER)
    images = [path for name in IMAGES if (path := folder / f"{name}.flat").is_file()]
    if not images:
        pytest.skip(f"{folder} has no image of kvm-unit-tests: {', '.join(IMAGES)}")
    program = ("-m", "tests.nested.kvm_unit_tests", str(vcpus), *map(str, images))
    done = standard_kvm.run(*program, seconds=PATIENCE, files=images)
    both = runs(done.output)
    for image in images:
        theirs, ours = both[image.stem, KERNEL], both[image.stem, IRQCHIPD]
        assert theirs.status in ENDED, f"{image.stem} does not end on the kernel's irqchip:\n{theirs.output}"
        assert ours.status in ENDED, f"{image.stem} does not end:\n{ours.output}"
        assert theirs.results, theirs.output
        kernel_passes = {name for result, name in theirs.results if result != "FAIL"}
        assert [name for _, name in ours.results] == [name for _, name in theirs.results], ours.output
        worse = [name for result, name in ours.results if result == "FAIL" and name in kernel_passes]
        assert not worse, ours.output

"""A program for the machine of standard_kvm.py: runs images of kvm-unit-tests on the kernel's irqchip and on irqchipd.

python -m tests.nested.kvm_unit_tests VCPUS IMAGE...

Each run's output is between two lines of this program: runs() finds them.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from irqchip_client import cli
from tests.nested import in_kernel

KERNEL, IRQCHIPD = "kernel", "irqchipd"
# Without QEMU's test device, a test of KVM's hypercalls is skipped, which irqchipd's vCPUs do not have.
ENVIRONMENT = "TEST_DEVICE=0\n"
TIMEOUT = 200.0  # seconds of that machine's clock
RUN = re.compile(r"^BEGINS (\w+) (\w+)\n(.*?)^ENDS (-?\d+)$", re.MULTILINE | re.DOTALL)
RESULT = re.compile(r"^(PASS|FAIL|SKIP|XFAIL|XPASS): (.*?)\r*$", re.MULTILINE)
FORKING = multiprocessing.get_context("forkserver")  # a Python takes seconds to start there
FORKING.set_forkserver_preload(["tests.nested.in_kernel", "irqchip_client.cli.run", "irqchip_client.kvm"])


@dataclass(frozen=True)
class Run:
    """What a run has printed.

    status  1 if all tests have passed, 3 if some have failed; negative: it was killed after TIMEOUT
    """

    status: int
    output: str

    @property
    def results(self) -> list[tuple[str, str]]:
        """Each test's result and name."""
        return RESULT.findall(self.output)


def runs(output: str) -> dict[tuple[str, str], Run]:
    """The runs, by image and irqchip, from this program's output."""
    return {(image, irqchip): Run(int(status), text) for image, irqchip, text, status in RUN.findall(output)}


def on_kernel(image: str, vcpus: str, environment: str) -> None:
    """Runs an image on the kernel's irqchip."""
    in_kernel.main(image, vcpus, environment)


def on_irqchipd(image: str, vcpus: str, environment: str) -> None:
    """Runs an image by `irqchipctl run`."""
    cli.main(["run", "--cpu", "kvm", "--vcpus", vcpus, "--kernel", image, "--initrd", environment])


def main(vcpus: str, *images: str) -> None:
    """Run the images one after the other, each on both."""
    runners: dict[str, Callable[[str, str, str], None]] = {KERNEL: on_kernel, IRQCHIPD: on_irqchipd}
    with tempfile.NamedTemporaryFile("w") as environment:
        environment.write(ENVIRONMENT)
        environment.flush()
        for image in images:
            for name, runner in runners.items():
                print(f"BEGINS {Path(image).stem} {name}", flush=True)
                process = FORKING.Process(target=runner, args=(image, vcpus, environment.name))
                process.start()
                process.join(TIMEOUT)
                process.kill()
                process.join()
                print(f"\nENDS {process.exitcode}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

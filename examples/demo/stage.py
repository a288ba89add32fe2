"""The demo's processes."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from examples.demo import ARM64_CLIENTS, CLIENTS, SECTOR, SECTORS, VM
from examples.demo.monitor import DemoError

COLOURS = {
    "daemon": "white",
    "vcpu": "green",
    "vcpu 0": "green",
    "vcpu 1": "green",
    "guest": "bold green",
    "stage": "red",
}
GUEST = Path(__file__).parents[1] / "guest" / "guest.elf"
ARM64_GUEST = GUEST.with_name("guest-arm64.elf")
SEEK = 0.002  # seconds per disk command


@dataclass
class Stage:
    """The demo's processes and their folder. Their output is shown as it comes, unless `quiet`.

    patience  seconds that a process may take to begin, or to end
    """

    folder: Path
    patience: float = 60.0
    quiet: bool = False
    embedded: bool = False  # the vCPU's process is the daemon, too
    architecture: str = "x86"
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    began: float = field(default_factory=time.monotonic)
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    # The command line of each process, including those that have ended.
    commands: dict[str, list[str]] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The daemon's address."""
        return f"unix://{self.folder}/irqchipd.sock"

    @property
    def image(self) -> Path:
        """The disk's file."""
        return self.folder / "disk.img"

    def start_daemon(self, *more: str) -> None:
        """Create a disk with data, and start the daemon, if it has a process of its own."""
        self.image.write_bytes(random.Random(8259).randbytes(SECTOR * SECTORS))
        if not self.embedded:
            self.start("daemon", "-m", "irqchipd", "--listen", self.target, "--log-level", "warning", *more)
            self._await_daemon()

    def _await_daemon(self) -> None:
        deadline = time.monotonic() + self.patience
        while not (self.folder / "irqchipd.sock").exists():
            if time.monotonic() > deadline:
                raise DemoError("the daemon does not listen")
            time.sleep(0.02)

    def start_device(self, name: str) -> None:
        """Start a device."""
        more = {
            "serial": ("--listen", f"{self.folder}/serial"),
            "keyboard": ("--listen", f"{self.folder}/keyboard"),
            "disk": ("--image", f"{self.image}", "--seek", f"{SEEK}"),
            "debug_exit": ("--delete-vm",),
        }
        place = () if self.architecture == "x86" else (f"--{self.architecture}",)
        self.start(name, "-m", f"examples.{name}", "--target", self.target, *more.get(name, ()), *place)

    def start_vcpu(self, cpu: str, *more: str) -> None:
        """Start the vCPU with the demo's guest. It waits for the devices."""
        awaited = [word for client in CLIENTS for word in ("--await", client)]
        place = ("--listen", self.target.removeprefix("unix://")) if self.embedded else ("--target", self.target)
        command = ["-m", "irqchip_client.cli", "run", *place, "--cpu", cpu, "--vm", VM]
        self.start(
            "vcpu", *command, "--kernel", str(GUEST), "--without", "serial", "--without", "exit", *awaited, *more
        )
        self._await_daemon()

    def start_arm64_vcpus(self, gic: int) -> None:
        """Start the two vCPUs of the demo's guest for arm64. They wait for the devices."""
        command = ["-m", "examples.arm64_vcpu", "--target", self.target, "--vm", VM, "--folder", str(self.folder)]
        awaited = [word for client in ARM64_CLIENTS for word in ("--await", client)]
        self.start("vcpu 0", *command, "--vcpu", "0", "--gic", str(gic), "--kernel", str(ARM64_GUEST), *awaited)
        self.start("vcpu 1", *command, "--vcpu", "1")

    def start(self, name: str, *arguments: str) -> None:
        """Start a Python process, and show its output as it comes."""
        self.commands[name] = [sys.executable, *arguments]
        process = subprocess.Popen(
            self.commands[name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes[name] = process
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not self.quiet:
                self.show(name, line.rstrip())

    def show(self, name: str, line: str) -> None:
        """Show one line, with the name of its process."""
        elapsed = f"{time.monotonic() - self.began:7.3f}  "
        self.console.print(Text(elapsed, "dim") + Text(f"{name:11}", COLOURS.get(name, "cyan")) + Text(line))

    def kill(self, name: str) -> None:
        """Send SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def wait(self, name: str) -> int:
        """Wait for a process to end, and return its exit status. DemoError if it does not end in time."""
        try:
            return self.processes.pop(name).wait(self.patience)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{name} did not end") from None

    def stop(self, name: str) -> int:
        """Send SIGTERM, and return the exit status."""
        self.processes[name].terminate()
        return self.wait(name)

    def close(self) -> None:
        """End all processes."""
        for name in list(self.processes):
            self.kill(name)

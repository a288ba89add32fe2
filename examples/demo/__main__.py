"""The stage of `make demo`: it starts every process, shows what they say, kills one, and sums up."""

from __future__ import annotations

import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from examples.demo import DISK_GSI, SECTOR, VM
from irqchip_client import Chip, Client, IrqchipError, connect

COLOURS = {"daemon": "white", "vcpu": "green", "timer": "cyan", "serial": "magenta", "disk": "yellow", "stage": "red"}
GREETING = Path(__file__).with_name("greeting.txt")
SECTORS = 8
PATIENCE = 25.0  # seconds for all of it


class DemoError(Exception):
    """Something did not happen that should have."""


@dataclass
class Stage:
    """The processes, and what they have said."""

    folder: Path
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    started: float = field(default_factory=time.monotonic)
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    lines: queue.SimpleQueue[tuple[str, str]] = field(default_factory=queue.SimpleQueue)

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start a process; its lines are shown as they come."""
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.processes[name] = process
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.put((name, line.rstrip()))

    def show(self, name: str, line: str) -> None:
        """One line of the demo's own."""
        elapsed = f"{time.monotonic() - self.started:7.3f}  "
        self.console.print(Text(elapsed, "dim") + Text(f"{name:7}", f"bold {COLOURS[name]}") + Text(line))

    def show_until(self, name: str, part: str) -> None:
        """Show what is said until a process says something; DemoError where it does not."""
        while True:
            try:
                speaker, line = self.lines.get(timeout=0.2)
            except queue.Empty:
                self.check_all_live()
                if time.monotonic() > self.started + PATIENCE:
                    raise DemoError(f"{name} never said {part!r}") from None
                continue
            self.show(speaker, line)
            if speaker == name and part in line:
                return

    def check_all_live(self) -> None:
        """DemoError where a process has failed."""
        for name, process in self.processes.items():
            if process.poll():
                raise DemoError(f"{name} ended with status {process.returncode}")

    def show_rest(self) -> None:
        """Show what has been said and not been shown."""
        while not self.lines.empty():
            self.show(*self.lines.get())

    def stop(self, name: str) -> int:
        """Tell a process to stop, and return its exit status."""
        process = self.processes[name]
        process.terminate()
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def run(stage: Stage) -> None:
    """The play."""
    target = f"unix://{stage.folder}/irqchipd.sock"
    image = stage.folder / "disk.img"
    image.write_bytes(random.Random(8259).randbytes(SECTORS * SECTOR))
    common = ("--target", target, "--run", str(stage.folder))

    stage.start("daemon", "irqchipd", "--listen", target, "--log-level", "warning")
    stage.show_until("daemon", "listening on")
    files = ("--serial-file", str(GREETING), "--image", str(image), "--sectors", str(SECTORS))
    stage.start("vcpu", "examples.demo.vcpu", *common, *files, "--defer")
    stage.start("timer", "examples.demo.timer", *common)
    stage.start("serial", "examples.demo.serial", *common, "--file", str(GREETING), "--baud", "400")
    stage.start("disk", "examples.demo.disk", *common, "--image", str(image))
    stage.show_until("vcpu", "deferred")
    with connect(target) as client:
        kill_disk(stage, client)
    stage.show_until("vcpu", "as it was sent")
    if status := stage.processes["vcpu"].wait(5):
        raise DemoError(f"vcpu ended with status {status}")
    for name in ("serial", "timer", "daemon"):
        if status := stage.stop(name):
            raise DemoError(f"{name} ended with status {status}")
    time.sleep(0.1)  # for the last lines to arrive
    stage.show_rest()


def kill_disk(stage: Stage, client: Client) -> None:
    """Kill the disk's process while its line is high, and see the level drop."""
    high, seen = disk_line(client)
    if not high or not seen:
        raise DemoError(f"GSI {DISK_GSI} should be high, and the IOAPIC see it")
    stage.show("stage", f"IOAPIC IRR bit {DISK_GSI} is 1, driven by line source 'disk'; now its process is killed")
    killed = time.monotonic()
    disk = stage.processes.pop("disk")
    disk.kill()
    disk.wait()
    while any(disk_line(client)):
        if time.monotonic() - killed > 1:
            raise DemoError(f"the disk is dead and GSI {DISK_GSI} is still high")
        time.sleep(0.001)
    stage.show("stage", f"{(time.monotonic() - killed) * 1000:.0f} ms later its level has dropped: IRR bit is 0")


def disk_line(client: Client) -> tuple[bool, bool]:
    """Whether the disk drives its GSI high, and whether the IOAPIC has it pending."""
    vm = client.vm(VM)
    drives = any(DISK_GSI in session.asserted_gsis for session in vm.info().sessions if session.client == "disk")
    return drives, bool(vm.get_irqchip(Chip.IOAPIC).irr >> DISK_GSI & 1)


def main() -> int:
    """Run the demo; 0 if all went as it should."""
    os.environ["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryDirectory(prefix="irqchip-demo-") as folder:
        stage = Stage(Path(folder))
        try:
            run(stage)
        except (DemoError, IrqchipError, subprocess.TimeoutExpired) as error:
            stage.show_rest()
            stage.show("stage", f"FAILED: {error}")
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            for process in stage.processes.values():
                process.kill()
                process.wait()
    stage.show("stage", "done: three devices, a vCPU and the interrupt controller, five processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

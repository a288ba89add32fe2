"""The scripts in examples/: each runs in a process of its own, and a vCPU reaches its registers through the daemon."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from irqchip_client import Vcpu, Vm
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
SERIAL, LSR = 0x3F8, 0x3FD
SECTOR = 512
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def cpu(vm: Vm) -> Vcpu:
    return vm.vcpu(0)


@pytest.fixture
def start(irqchip_server: Daemon, vm: Vm) -> Iterator[Start]:
    """Start an example for the VM, and wait until it has registered its regions, or failed."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(
        name: str,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        regions: int = 1,
    ) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            f"examples.{name}",
            "--vm",
            vm.name,
            "--target",
            irqchip_server.target,
            *arguments,
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stderr)
        processes.append(process)
        eventually(
            lambda: process.poll() is not None or sum(len(s.regions) for s in vm.info().sessions) == regions, PATIENCE
        )
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def receive(client: socket.socket, length: int) -> bytes:
    """What a socket's other end sends, in however many parts."""
    data = b""
    while len(data) < length and (part := client.recv(length - len(data))):
        data += part
    return data


def get(cpu: Vcpu, port: int, size: int = 1) -> int:
    access = cpu.pio_read(port, size)
    assert access.claimed
    return access.data


def get_line(cpu: Vcpu) -> bytes:
    """Read from the serial port up to the end of the line."""
    line = b""
    while not line.endswith(b"\n"):
        eventually(lambda: bool(get(cpu, LSR) & 1), PATIENCE)
        line += bytes((get(cpu, SERIAL),))
    return line


def put(cpu: Vcpu, data: bytes) -> None:
    for byte in data:
        eventually(lambda: bool(get(cpu, LSR) & 0x20), PATIENCE)
        cpu.pio_write(SERIAL, byte)


def read_exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([descriptor], [], [], 10)[0]
        data += os.read(descriptor, count - len(data))
    return data


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_serial_between_its_standard_streams(cpu: Vcpu, start: Start) -> None:
    process = start("serial", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    os.write(process.stdin.fileno(), b"in\n")
    assert get_line(cpu) == b"in\n"
    put(cpu, b"out\n")
    assert read_exactly(process.stdout.fileno(), 4) == b"out\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_serial_on_a_terminal_until_control_right_bracket(cpu: Vcpu, start: Start) -> None:
    main, terminal = pty.openpty()
    process = start("serial", stdin=terminal, stdout=terminal)
    os.write(main, b"\x03\n")  # Control-C goes to the guest
    assert get_line(cpu) == b"\x03\n"
    put(cpu, b"out")
    assert read_exactly(main, 3) == b"out"
    os.write(main, b"\x1d")
    assert process.wait(PATIENCE) == 0
    os.close(main)
    os.close(terminal)


def test_serial_keeps_its_output_for_the_next_client(cpu: Vcpu, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    start("serial", "--listen", str(path))
    for greeting in (b"one", b"two"):
        put(cpu, greeting)
        with connect(path) as client:
            assert receive(client, len(greeting)) == greeting
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)  # a script that has sent everything and still reads
            assert get_line(cpu) == b"hello\n"
            put(cpu, b"answer")
            assert receive(client, len(b"answer")) == b"answer"


def test_serial_delivers_all_input_of_a_client_that_left(cpu: Vcpu, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    start("serial", "--listen", str(path))
    lines = [f"{number:04}\n".encode() for number in range(40)]
    for line in lines:
        with connect(path) as client:
            client.sendall(line)
    assert [get_line(cpu) for _ in lines] == lines


def test_keyboard_types_what_a_client_sends(cpu: Vcpu, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keyboard"
    start("keyboard", "--listen", str(path), "--interval", "0.001", regions=2)  # ports 60h and 64h
    with connect(path) as client:
        client.sendall(b"Hi\n")
    codes: list[int] = []
    while codes[-1:] != [0x9C]:
        eventually(lambda: bool(get(cpu, 0x64) & 1), PATIENCE)
        codes.append(get(cpu, 0x60))
    assert codes == [0x2A, 0x23, 0xA3, 0xAA, 0x17, 0x97, 0x1C, 0x9C]


def test_rtc_has_the_hosts_date(cpu: Vcpu, start: Start) -> None:
    start("rtc")
    before = time.gmtime()
    cpu.pio_write(0x70, 0x09)
    year = get(cpu, 0x71)
    assert int(f"{year:x}") in (before.tm_year % 100, time.gmtime().tm_year % 100)


def test_disk_serves_a_file(cpu: Vcpu, start: Start, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    content = bytes(range(256)) * 8
    image.write_bytes(content)
    start("disk", "--image", str(image), "--seek", "0.001", "--read-only")
    assert get(cpu, 0x62C, 4) == 4
    cpu.pio_write(0x620, 2, 4)
    cpu.pio_write(0x624, 1)
    eventually(lambda: get(cpu, 0x624) == 2, PATIENCE)
    data = b"".join(get(cpu, 0x628, 4).to_bytes(4, "little") for _ in range(SECTOR // 4))
    assert data == content[2 * SECTOR : 3 * SECTOR]
    cpu.pio_write(0x624, 2)
    assert get(cpu, 0x625) == 4


def test_disk_without_its_file_says_so(start: Start, tmp_path: Path) -> None:
    process = start("disk", "--image", str(tmp_path / "none"), stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr as stderr:
        assert b"No such file" in stderr.read()
    assert process.wait(PATIENCE) == 1


def test_debug_exit_ends_with_the_guests_status(cpu: Vcpu, start: Start, tmp_path: Path) -> None:
    process = start("debug_exit", stdout=subprocess.PIPE)
    cpu.pio_write(0xF4, 0x10)
    assert process.wait(PATIENCE) == 0x21
    process = start("debug_exit", "--status-file", str(tmp_path / "status"), stdout=subprocess.PIPE)
    cpu.pio_write(0xF4, 3)
    assert process.wait(PATIENCE) == 0
    assert (tmp_path / "status").read_text() == "7\n"

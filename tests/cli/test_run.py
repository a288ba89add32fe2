"""irqchipctl run: guests, and how their runs end."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from irqchip_client import Client
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client.cli import main
from tests.waiting import PATIENCE, eventually

GUEST = Path(__file__).parents[2] / "examples" / "guest" / "guest.elf"

CPUS = [
    pytest.param(
        "kvm",
        marks=pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm to use"),
    ),
    pytest.param(
        "unicorn",
        marks=pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="Unicorn is not installed"),
    ),
]

# 16-bit code, entered at 7c00h.
EXIT_WITH_AL = "e6 f4 f4"  # out 0xf4, al; hlt
SPIN = "eb fe"  # jmp $
SAYS_THAT_IT_SPINS = "ba f8 03  b0 73 ee" + SPIN  # "s", to 3f8h
HELLO = "ba f8 03  b0 48 ee  b0 69 ee  b0 00" + EXIT_WITH_AL  # "Hi", to 3f8h
CPUS_OF_FW_CFG = "ba 10 05  b8 05 00 ef  42 ec" + EXIT_WITH_AL  # select item 5, read a byte
LINE_4 = "ba 04 20  b0 01 ee  b0 0a e6 20  e4 20" + EXIT_WITH_AL  # raise GSI 4; OCW3: read IRR
ECHO = "ba fd 03 ec a8 01 74 f8  ba f8 03 ec ee  b0 02" + EXIT_WITH_AL  # wait for a character, and send it back
POWER_OFF = "ba 04 06  b8 00 34 ef" + SPIN  # PM1 control: sleep type 5, enabled
RESET = "ba f9 0c  b0 06 ee" + SPIN
BASE_MEMORY = "a0 13 04" + EXIT_WITH_AL  # mov al, [413h]
# xor ax, ax; mov ah, 88h; int 15h; setc al; add al, ah
BIOS_CALL = "bc 00 7c  30 c0  b4 88  cd 15  0f 92 c0  00 e0" + EXIT_WITH_AL
RSDP = "b8 00 e0 8e d8  a0 00 00" + EXIT_WITH_AL  # mov al, [e000h:0]
# A multiboot image, by its addresses: 32-bit code at 100020h. lidt with a limit of 0; ud2.
NO_IDT = (
    "02 b0 ad 1b  00 00 01 00  fe 4f 51 e4  00 00 10 00  00 00 10 00  00 00 00 00  00 00 00 00  20 00 10 00"
    "0f 01 1d 2a 00 10 00 0f 0b f4  00 00 00 00 00 00"
)


def taken_for_flat(kernel: Path) -> str:
    """What `run` says of a guest of no known format."""
    why = "is no Linux bzImage, no multiboot image and no ELF file for PVH"
    return f"{kernel} {why}: it is taken for a flat binary of 16-bit code\n"


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(irqchip_server: Daemon, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(image: str | Path | None, *options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        kernel = image
        if isinstance(image, str):
            kernel = tmp_path / "guest.bin"
            Path(kernel).write_bytes(bytes.fromhex(image))
        command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
        command += options if kernel is None else ["--kernel", str(kernel), *options]
        done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=140, check=False)
        done.stderr = done.stderr.removeprefix(taken_for_flat(tmp_path / "guest.bin"))  # which most guests here are
        return done

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def no_vm_is_left(irqchip_client: Client) -> Iterator[None]:
    before = irqchip_client.vms()
    yield
    assert irqchip_client.vms() == before


def test_a_write_to_port_f4h_ends_the_run_with_its_value(run: Run, cpu: str) -> None:
    done = run(HELLO, "--cpu", cpu)
    assert (done.returncode, done.stdout, done.stderr) == (1, "Hi", "")
    assert run("b0 15" + EXIT_WITH_AL, "--cpu", cpu).returncode == 0x15 << 1 | 1


def test_what_a_guest_does_after_its_end_does_not_count(run: Run, cpu: str) -> None:
    done = run("b0 15  0f 01 1e 00 00  e6 f4 cc", "--cpu", cpu)  # lidt [0], where a limit of 0 is; out f4h, al; int3
    assert (done.returncode, done.stderr) == (0x15 << 1 | 1, "")


def test_fw_cfg_has_the_number_of_cpus(run: Run, cpu: str) -> None:
    assert run(CPUS_OF_FW_CFG, "--cpu", cpu).returncode == 1 << 1 | 1


# Firmware of 4 KiB, entered at fffffff0h, with a byte of 12h at ffffff80h. It adds the byte, tries to overwrite it, and
# adds it again. Then it overwrites the byte's copy in shadow RAM with 3, adds that, and goes on there.
FIRMWARE = {
    0xF00: "2e a0 80 ff"  # mov al, cs:[ff80h]
    "2e c6 06 80 ff 77"  # mov byte cs:[ff80h], 77h
    "2e 02 06 80 ff"  # add al, cs:[ff80h]
    "bb 00 f0 8e db"  # mov bx, f000h; mov ds, bx
    "c6 06 80 ff 03 02 06 80 ff"  # mov byte [ff80h], 3; add al, [ff80h]
    "ea 40 ff 00 f0",  # jmp f000h:ff40h
    0xF40: EXIT_WITH_AL,
    0xF80: "12",
    0xFF0: "e9 0d ff",  # jmp ff00h
}


def test_firmware_begins_in_rom_and_goes_on_in_shadow_ram(run: Run, cpu: str, tmp_path: Path) -> None:
    image = bytearray(0x1000)
    for offset, code in FIRMWARE.items():
        image[offset : offset + len(bytes.fromhex(code))] = bytes.fromhex(code)
    (tmp_path / "firmware.bin").write_bytes(image)
    done = run(None, "--firmware", str(tmp_path / "firmware.bin"), "--cpu", cpu, "--timeout", "60")
    assert (done.returncode, done.stderr) == ((0x12 + 0x12 + 3) << 1 | 1, "")


# Selects the item 21h, the second file, and ends with its first byte.
FILE_OF_FW_CFG = "ba 10 05  b8 21 00 ef  42 ec" + EXIT_WITH_AL


def test_fw_cfg_has_files(run: Run, cpu: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x15")
    done = run(FILE_OF_FW_CFG, "--fw-cfg", f"opt/test={tmp_path}/file", "--cpu", cpu)
    assert done.returncode == 0x15 << 1 | 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "give either --kernel FILE or --firmware FILE"),
        (("--kernel", "FILE", "--firmware", "FILE"), "give either --kernel FILE or --firmware FILE"),
        (("--firmware", "FILE"), "this one has 3 bytes"),
        (("--firmware", "FILE", "--append", "x"), "leave --append and --initrd out"),
        (("--firmware", "FILE", "--arch", "arm64"), "--firmware is for x86"),
        (("--kernel", "FILE", "--fw-cfg", "x"), "'x' is no NAME=FILE"),
        (("--kernel", "FILE", "--fw-cfg", "x=/none"), "/none can't be read"),
        (("--kernel", "FILE", "--fw-cfg", "x=FILE", "--fw-cfg", "x=FILE"), "gives one NAME twice"),
        (("--kernel", "FILE", "--arch", "arm64", "--fw-cfg", "x=FILE"), "an arm64 machine has no fw_cfg"),
    ],
)
def test_firmware_and_files_that_can_not_be_used_are_refused(
    irqchip_server: Daemon, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    (tmp_path / "guest.bin").write_bytes(bytes.fromhex(EXIT_WITH_AL))
    given = [option.replace("FILE", f"{tmp_path}/guest.bin") for option in options]
    done = CliRunner().invoke(main, ["--target", irqchip_server.target, "run", *given])
    assert done.exit_code == 2
    assert why in done.stderr


def test_ports_2000h_and_up_drive_gsis(run: Run, cpu: str) -> None:
    assert run(LINE_4, "--cpu", cpu).returncode == (1 << 4) << 1 | 1


@pytest.mark.parametrize("code", [POWER_OFF, RESET])
def test_a_guest_turns_the_machine_off_or_resets_it(run: Run, cpu: str, code: str) -> None:
    done = run(code, "--cpu", cpu, "--timeout", "60")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_guest_finds_what_firmware_would_leave(run: Run) -> None:
    assert run(BASE_MEMORY).returncode == ((639 & 0xFF) << 1 | 1) & 0xFF
    assert run(BIOS_CALL).returncode == ((0x86 + 1) << 1 | 1) & 0xFF
    assert run(RSDP).returncode == (ord("R") << 1 | 1) & 0xFF
    assert run(RSDP, "--without", "power").returncode == 1


def test_typed_text_arrives_at_the_serial_port(run: Run, cpu: str) -> None:
    done = run(ECHO, "--cpu", cpu, typed="x")
    assert (done.returncode, done.stdout) == (5, "x")


def test_a_guest_that_does_not_end_is_stopped_when_its_time_is_up(run: Run, cpu: str) -> None:
    for code in (SPIN, "fa f4" + SPIN, "fb f4" + SPIN):  # cli; hlt, and sti; hlt
        done = run(code, "--cpu", cpu, "--timeout", "0.5")
        assert done.returncode == 124
        assert "has not ended within 0.5 s" in done.stderr


def test_a_guest_that_can_not_go_on_says_where(run: Run, cpu: str) -> None:
    done = run(NO_IDT, "--cpu", cpu, "--timeout", "10")
    assert done.returncode == 126, done.stderr
    assert "fault" in done.stderr
    assert "100027" in done.stderr


def test_a_multiboot_kernel_runs_with_its_command_line(run: Run, cpu: str) -> None:
    # Typed characters wait until the guest has set up its port and cleared the FIFOs.
    typed = "cmdline\recho Hello\rexit 3\r"
    for mode in ("ioapic", "pic"):
        for _ in range(2):  # on a busy machine the next tick may always be due: the guest then does nothing else
            done = run(GUEST, "--cpu", cpu, "--append", f"irq={mode}", "--timeout", "60", typed=typed)
            if done.returncode != 124:
                break
        assert done.returncode == 7, done
        assert f"irqchipd demo guest, {mode.upper()} mode" in done.stdout
        assert f"\n{GUEST} irq={mode}\n> echo Hello\nHello\n" in done.stdout


def test_deleting_the_vm_ends_the_run(irqchip_server: Daemon, irqchip_client: Client, cpu: str, tmp_path: Path) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(SAYS_THAT_IT_SPINS))
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
    command += ["--cpu", cpu, "--kernel", str(kernel), "--vm", "doomed"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"s"
        irqchip_client.delete_vm("doomed")
        assert process.wait(PATIENCE) == 0


@pytest.fixture
def at_a_terminal(
    irqchip_server: Daemon, irqchip_client: Client, tmp_path: Path
) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """Run a spinning guest at a terminal of its own, until this client is there; returns the terminal's other end."""
    typist, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)

    def run(*options: str, client: str) -> tuple[subprocess.Popen[bytes], int]:
        kernel = tmp_path / "guest.bin"
        kernel.write_bytes(bytes.fromhex(SAYS_THAT_IT_SPINS))
        command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
        command += ["--kernel", str(kernel), "--vm", "typed", *options]
        process = subprocess.Popen(command, stdin=terminal, stdout=terminal, start_new_session=True)
        eventually(lambda: any(client in session.client for vm in irqchip_client.vms() for session in vm.sessions))
        eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)  # it reads from the terminal
        if client == "vcpu":
            assert os.read(typist, 1) == b"s"
        return process, typist

    yield run
    assert termios.tcgetattr(terminal) == before
    os.close(typist)
    os.close(terminal)


Terminal = Callable[..., tuple[subprocess.Popen[bytes], int]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_leaves_nothing(at_a_terminal: Terminal, cpu: str, number: int) -> None:
    process, _ = at_a_terminal("--cpu", cpu, client="vcpu")
    process.send_signal(number)
    assert process.wait(PATIENCE) == -number


def test_a_run_that_is_killed_leaves_no_vm(
    irqchip_server: Daemon, irqchip_client: Client, cpu: str, tmp_path: Path
) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(SPIN))
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
    with subprocess.Popen([*command, "--cpu", cpu, "--kernel", str(kernel)], stdin=subprocess.DEVNULL) as process:
        eventually(irqchip_client.vms)
        process.kill()
    eventually(lambda: not irqchip_client.vms())


def test_a_terminal_shows_how_to_leave(irqchip_server: Daemon, tmp_path: Path) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(ECHO))
    typist, terminal = pty.openpty()
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
    command += ["--kernel", str(kernel), "--vm", "told"]
    with subprocess.Popen(command, stdin=terminal, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().decode() == taken_for_flat(kernel)
        assert process.stderr.readline().startswith(b"VM told runs guest.bin on ")
        os.write(typist, b"\x1d")
        assert process.wait(PATIENCE) == 0
    os.close(typist)
    os.close(terminal)


def test_the_wait_for_clients_can_be_ended(at_a_terminal: Terminal) -> None:
    process, typist = at_a_terminal("--await", "nobody", client="devices")
    os.write(typist, b"\x1d")
    assert process.wait(PATIENCE) == 0


def test_a_client_that_does_not_come_is_named_and_the_status_says_so(run: Run) -> None:
    done = run(SPIN, "--await", "disk", "--await", "rtc", "--await-timeout", "0.2")
    assert done.returncode == 124
    assert "disk, rtc: no such client has claimed ports or addresses" in done.stderr
    assert "within 0.2 s" in done.stderr
    assert "--await-timeout" in done.stderr


def test_the_time_limit_covers_the_wait_for_clients(run: Run) -> None:
    done = run(SPIN, "--await", "disk", "--timeout", "0.2")
    assert done.returncode == 124
    assert "within 0.2 s, which --timeout allows" in done.stderr


def test_a_daemon_that_dies_in_the_middle_is_not_a_refusal(tmp_path: Path, cpu: str) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(SAYS_THAT_IT_SPINS))
    with start_daemon() as daemon:
        command = [sys.executable, "-m", "irqchip_client.cli", "--target", daemon.target, "run"]
        command += ["--cpu", cpu, "--kernel", str(kernel)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stderr=pipe, stdin=subprocess.DEVNULL, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == "s"
            daemon.process.kill()
            _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 126, said
    assert "no irqchipd answers" in said


def test_a_terminal_may_hang_up(irqchip_server: Daemon, tmp_path: Path) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(ECHO))
    for seconds in ("0.5", "5", "50"):
        typist, terminal = pty.openpty()
        command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
        command += ["--kernel", str(kernel), "--timeout", seconds]
        process = subprocess.Popen(command, stdin=terminal, stderr=subprocess.PIPE, start_new_session=True, text=True)
        # Until the run reads from the terminal, or is over already.
        eventually(lambda: process.poll() is not None or not termios.tcgetattr(terminal)[3] & termios.ECHO)  # noqa: B023
        over = process.poll() is not None
        os.close(terminal)
        os.close(typist)
        _, errors = process.communicate(timeout=PATIENCE)
        if not over:
            break
    # The terminal may still be there when the run looks for one.
    errors = re.sub(r"^VM .* ends it\r?\n", "", errors, flags=re.MULTILINE)
    assert (process.returncode, errors) == (
        124,
        taken_for_flat(kernel) + f"Error: the guest has not ended within {seconds} s, which --timeout allows\n",
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_without_standard_input_or_output(irqchip_server: Daemon, tmp_path: Path, closed: str) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(HELLO))
    command = f"{sys.executable} -m irqchip_client.cli --target {irqchip_server.target} run --kernel {kernel} {closed}"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, taken_for_flat(kernel))


@pytest.mark.parametrize(
    ("image", "options", "why"),
    [
        ("", (), "it is empty"),
        ("7f 45 4c 46", (), "it ends too early"),
        (SPIN, ("--append", "x"), "a flat binary takes no command line"),
        (SPIN, ("--await", "nobody", "--vm", "!"), "is no VM name"),
    ],
)
def test_an_image_that_cannot_run_is_refused(run: Run, image: str, options: tuple[str, ...], why: str) -> None:
    done = run(image, *options)
    assert done.returncode == 2
    assert why in done.stderr


# Reads sector 1 of disk 1, writes it to sector 2, and ends with its last byte.
READS_DISK = (
    "ba f6 01  b0 f0  ee"  # device: LBA, disk 1
    "ba f2 01  b0 01  ee  42  ee  42  b0 00  ee  42  ee"  # one sector, of number 1
    "ba f7 01  b0 20  ee  ec  a8 08  74 fb"  # READ SECTORS; wait for DRQ
    "ba f0 01  bf 00 80  b9 00 01  f3 6d"  # rep insw, to 8000h
    "ba f3 01  b0 02  ee  ba f7 01  b0 30  ee"  # WRITE SECTORS, of number 2
    "ba f0 01  be 00 80  b9 00 01  f3 6f"  # rep outsw
    "ba f7 01  ec  a8 80  75 fb  a0 ff 81  e6 f4  f4"  # wait for BSY to end
)


def test_disks_of_the_runs_own(run: Run, tmp_path: Path, cpu: str) -> None:
    images = [tmp_path / name for name in ("first", "second", "third")]
    for number, image in enumerate(images):
        image.write_bytes(bytes(512) + bytes(511) + bytes([0x10 + number]) + bytes(512))
    disks = [option for image in images for option in ("--disk", str(image))]
    assert run(READS_DISK, *disks[:4], "--cpu", cpu, "--timeout", "60").returncode == 0x11 << 1 | 1
    assert images[1].read_bytes()[1023:] == bytes([0x11]) + bytes(511) + bytes([0x11])
    done = run(READS_DISK, *disks, "--cpu", cpu)
    assert (done.returncode, "an IDE channel has at most 2 disks" in done.stderr) == (2, True)
    (tmp_path / "empty").touch()
    done = run(READS_DISK, "--disk", str(tmp_path / "empty"), "--cpu", cpu)
    assert (done.returncode, "has no sector" in done.stderr) == (2, True)


# 32-bit code at 100020h: copies 16-bit code to 8000h, enables the local APIC, sends INIT and SIPI 8 to all other CPUs,
# and waits until all CPUs that fw_cfg reports have counted themselves at a000h.
SMP = (
    "02 b0 ad 1b  00 00 01 00  fe 4f 51 e4  00 00 10 00  00 00 10 00  00 00 00 00  00 00 00 00  20 00 10 00"
    "c7 05 00 80 00 00 31 c0 8e d8"  # mov dword [8000h], the code: xor ax, ax; mov ds, ax
    "c7 05 04 80 00 00 f0 ff 06 00"  # lock inc word [
    "c7 05 08 80 00 00 a0 f4 eb fd"  # a000h]; hlt; jmp to the hlt
    "c7 05 f0 00 e0 fe ff 01 00 00"  # SVR: enabled
    "c7 05 00 03 e0 fe 00 45 0c 00"  # ICR: INIT to all but itself
    "c7 05 00 03 e0 fe 08 46 0c 00"  # ICR: SIPI 8
    "66 ba 10 05  66 b8 05 00  66 ef  42  ec"  # fw_cfg: the number of CPUs
    "fe c8  3a 05 00 a0 00 00  75 f8"  # less this CPU; wait until all others have counted
    "e6 f4 f4"
)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm to use")
def test_several_vcpus_on_kvm(run: Run) -> None:
    assert run(SMP, "--cpu", "kvm", "--cpus", "3", "--timeout", "60").returncode == 2 << 1 | 1


def test_unicorn_has_one_vcpu(run: Run) -> None:
    pytest.importorskip("unicorn", reason="Unicorn is not installed")
    done = run(SPIN, "--cpu", "unicorn", "--vcpus", "2")
    assert done.returncode == 2
    assert "with Unicorn a machine has one vCPU" in done.stderr


# In real mode: reads the keyboard's port and the PIC's mask, and writes to the serial port; then spins for ever, or
# exits.
ACCESSES = "e4 21 e4 21 ba f8 03 b0 2e ee ee ee"


def exits(output: str) -> dict[tuple[str, str], list[str]]:
    """The rows of --stats, by kind and port."""
    rows = [line.split("\t") for line in output.splitlines() if "\t" in line]
    return {(row[0], row[1]): row[2:] for row in rows}


def test_stats_says_who_answered_how_often(run: Run, cpu: str) -> None:
    done = run(ACCESSES + "b0 07" + EXIT_WITH_AL, "--cpu", cpu, "--stats")
    assert done.returncode == 15
    rows = exits(done.stderr)
    assert rows["io read", "21"][:2] == ["the daemon", "2"]
    assert rows["io write", "3f8"][:2] == ["a device here", "3"]
    assert " answered by the daemon" in done.stderr


def test_sigusr1_shows_the_stats_of_a_guest_that_runs(irqchip_server: Daemon, tmp_path: Path, cpu: str) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(bytes.fromhex(ACCESSES + SPIN))
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run", "--stats"]
    command += ["--kernel", str(kernel), "--cpu", cpu]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == "..."
        process.send_signal(signal.SIGUSR1)
        assert any(" exits in " in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        rows = exits(process.communicate(timeout=PATIENCE)[1])
    assert rows["io write", "3f8"][:2] == ["a device here", "3"]

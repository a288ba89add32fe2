"""A vCPU is started, stopped in any activity, and closed."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from random import Random

import pytest

from irqchip_client import Busy, MpState, NotFound, SessionClosed
from irqchip_client.kvm import KvmVcpu, Start, StartMode
from tests.kvm import guests
from tests.kvm.machine import APIC, COUNT, HANDLER, NMI, Machine, running
from tests.waiting import PATIENCE, eventually

INIT, START_UP = 0x4500, 0x4609  # commands; the latter for the page at 9000h
SPIN = b"\xfe\x06\x00\x05\xeb\xfa"  # inc byte ptr [0x500]; jmp $ - 4
HALTS = b"\xfe\x06\x00\x05\xf4\xeb\xf9"  # inc byte ptr [0x500]; hlt; jmp $ - 5
NMI_MESSAGE = 0x400  # of an MSI


def test_a_spinning_vcpu_is_stopped_and_continues(machine: Machine) -> None:
    machine.load_real(SPIN)
    for _ in range(20):
        with machine.running() as done:
            count = machine.word(COUNT)
            eventually(lambda count=count: machine.word(COUNT) != count)  # type: ignore[misc]
            machine.cpu.stop()
            done.result(PATIENCE)


def test_a_halted_vcpu_is_stopped_and_halts_again(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.HALTS)
    with machine.vm.session("device") as session:
        for _ in range(20):
            with machine.running() as done:
                machine.wait_until_halted()
                machine.cpu.stop()
                done.result(PATIENCE)
            assert machine.devices.said == b""
        session.line(4).pulse()
        machine.cpu.run()
    assert machine.devices.said == b"I"


def test_stopping_a_vcpu_loses_no_interrupt(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.COUNTS)
    finished = threading.Event()

    def stop() -> None:
        finished.set()
        machine.cpu.stop()

    def run() -> None:
        while not finished.is_set():
            machine.cpu.run()

    machine.devices.stop = stop
    thread = threading.Thread(target=run)
    thread.start()
    with machine.vm.session("device") as session:
        for count in range(300):
            eventually(lambda count=count: machine.word(COUNT) & 0xFFFF == count)  # type: ignore[misc]
            session.line(4).pulse()
            machine.cpu.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert machine.devices.said == b"I" * 300


def test_a_stop_before_run_ends_one_run(machine: Machine) -> None:
    machine.load_real(SPIN)
    machine.cpu.stop()
    machine.cpu.run()
    assert machine.word(COUNT) == 0
    with machine.running():
        eventually(lambda: machine.word(COUNT))


def test_a_vcpu_runs_in_one_thread_at_a_time(machine: Machine) -> None:
    machine.load_real(SPIN)
    with machine.running():
        eventually(lambda: machine.word(COUNT))
        with pytest.raises(Busy, match="vCPU 0 runs already"):
            machine.cpu.run()
        with pytest.raises(Busy):
            machine.cpu.start(Start(StartMode.REAL, 0))


def test_close_ends_run(machine: Machine) -> None:
    machine.load_real(SPIN)
    with machine.running() as done:
        eventually(lambda: machine.word(COUNT))
        machine.cpu.close()
        done.result(PATIENCE)
    with pytest.raises(SessionClosed, match="vCPU 0 is closed"):
        machine.cpu.run()


@pytest.mark.parametrize("guest", [SPIN, b"\xf4"], ids=["spinning", "halted"])
def test_the_end_of_the_vm_ends_run(machine: Machine, guest: bytes) -> None:
    machine.load_real(guest)
    with machine.running() as done:
        time.sleep(0.02)
        machine.vm.delete()
        with pytest.raises((SessionClosed, NotFound)):
            done.result(PATIENCE)


@pytest.mark.parametrize("guest", [SPIN, b"\xf4"], ids=["spinning", "halted"])
def test_a_signal_handlers_exception_ends_run_and_the_vcpu_can_continue(machine: Machine, guest: bytes) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def stop_it() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)

    def run_until(timer: threading.Timer) -> None:
        timer.start()
        machine.cpu.run()

    machine.load_real(guest)
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        for _ in range(3):
            timer = threading.Timer(0.05, stop_it)
            with pytest.raises(KeyboardInterrupt):
                run_until(timer)
            timer.join()
        timer = threading.Timer(0.05, machine.cpu.stop)
        timer.start()
        machine.cpu.run()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_init_and_sipi_start_a_second_vcpu(machine: Machine) -> None:
    machine.vm.create_vcpu(1)
    machine.memory.write(0x9000, guests.OTHER)
    machine.load_protected(guests.STARTS_OTHER)
    with KvmVcpu(machine.kvm, machine.vm, 1) as other, running(other):
        machine.cpu.run()
        eventually(lambda: machine.vm.vcpu(1).mp_state() is MpState.HALTED)
    assert machine.word(COUNT) & 0xFF == 1


def test_a_vcpu_that_waits_for_sipi_is_stopped(machine: Machine) -> None:
    machine.vm.create_vcpu(1)
    with KvmVcpu(machine.kvm, machine.vm, 1) as other, running(other) as done:
        time.sleep(0.02)
        other.stop()
        done.result(PATIENCE)
    assert machine.vm.vcpu(1).mp_state() is MpState.UNINITIALIZED


def test_init_resets_a_running_vcpu(machine: Machine) -> None:
    machine.vm.create_vcpu(1)
    machine.memory.write(0x9000, SPIN)
    machine.load_protected(guests.STARTS_OTHER)
    with KvmVcpu(machine.kvm, machine.vm, 1) as other, running(other):
        machine.cpu.run()
        for _ in range(5):
            machine.vcpu.mmio_write(APIC + 0x300, INIT)
            machine.vcpu.mmio_write(APIC + 0x300, START_UP)
            machine.memory.write(COUNT, bytes(4))
            eventually(lambda: machine.word(COUNT))


def test_init_resets_the_debug_registers(machine: Machine) -> None:
    machine.vm.create_vcpu(1)
    machine.memory.write(0x9000, guests.DEBUGGED)
    machine.vcpu.mmio_write(APIC + 0xF0, 0x1FF)
    machine.vcpu.mmio_write(APIC + 0x310, 1 << 24)
    with KvmVcpu(machine.kvm, machine.vm, 1) as other, running(other):
        for started in (1, 2):
            for command in (INIT, START_UP):
                machine.vcpu.mmio_write(APIC + 0x300, command)
            eventually(lambda started=started: machine.memory.read(COUNT, 1)[0] == started)  # type: ignore[misc]
            assert machine.word(COUNT + 4) == 0


def test_vcpus_start_whatever_they_do_and_whatever_else_comes(machine: Machine) -> None:
    """INIT and SIPI reach a vCPU that spins, halts or waits, among NMIs and stops by other threads."""
    random, over, rounds = Random(1), threading.Event(), 25
    machine.memory.write(4 * NMI, HANDLER.to_bytes(4, "little"))
    machine.memory.write(HANDLER, b"\xcf")  # iret
    ids = (1, 2)
    counts = {vcpu: COUNT + 0x10 * vcpu for vcpu in ids}
    pages = {vcpu: (0x8 + 2 * vcpu, 0x9 + 2 * vcpu) for vcpu in ids}
    for vcpu in ids:
        machine.vm.create_vcpu(vcpu)
        for page, guest in zip(pages[vcpu], (SPIN, HALTS), strict=True):
            machine.memory.write(page << 12, guest.replace(b"\x00\x05", counts[vcpu].to_bytes(2, "little")))
    machine.vcpu.mmio_write(APIC + 0xF0, 0x1FF)

    def run(cpu: KvmVcpu) -> None:
        while not over.is_set():
            cpu.run()

    def disturb(cpus: list[KvmVcpu], random: Random) -> None:
        while not over.wait(random.random() / 100):
            machine.vm.signal_msi(APIC | random.choice(ids) << 12, NMI_MESSAGE)
            random.choice(cpus).stop()

    with ExitStack() as stack:
        cpus = [stack.enter_context(KvmVcpu(machine.kvm, machine.vm, vcpu)) for vcpu in ids]
        threads = [threading.Thread(target=run, args=(cpu,)) for cpu in cpus]
        threads.append(threading.Thread(target=disturb, args=(cpus, Random(2))))
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds):
                vcpu = random.choice(ids)
                machine.vcpu.mmio_write(APIC + 0x310, vcpu << 24)
                machine.vcpu.mmio_write(APIC + 0x300, INIT)
                if random.random() < 0.5:
                    time.sleep(random.random() / 100)
                machine.memory.write(counts[vcpu], bytes(4))
                machine.vcpu.mmio_write(APIC + 0x300, 0x4600 | random.choice(pages[vcpu]))
                eventually(lambda vcpu=vcpu: machine.word(counts[vcpu]))  # type: ignore[misc]
        finally:
            over.set()
            for cpu in cpus:
                cpu.stop()
            for thread in threads:
                thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)

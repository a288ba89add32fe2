"""KVM_IRQ_LINE's encoding, several line sources, irqfds, routing and MSIs."""

from __future__ import annotations

from typing import Any

import pytest

from irqchipd.observe.observer import Observer
from irqchipd.vm.arm64.line_numbers import LINES, irq_of, line_of, parts_of
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import DeviceType
from irqchipd.vm.events import Event, GsiAcknowledged, GsiResampled
from irqchipd.vm.lines import Irqfd
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.sources import LineSource
from tests.vm.arm64.machine import SPURIOUS, Arm, Wfi, ppi, refused, spi

BOTH = pytest.mark.parametrize("gic", [2, 3])


class TestEncoding:
    def test_every_number_in_a_bitmap_has_one_encoding(self) -> None:
        for line in (*range(32, 1024), *range(1024, LINES)):
            assert line_of(*parts_of(irq_of(line))) == line

    @pytest.mark.parametrize(
        ("irq", "reason"),
        [
            (0, "ENXIO"),  # a vCPU's own lines are the GIC's
            (3 << 24 | 40, "EINVAL"),
            (15 << 24, "EINVAL"),
            (spi(31), "EINVAL"),
            (spi(64), "EINVAL"),
            (spi(1023), "EINVAL"),
            (ppi(0, 15), "EINVAL"),
            (ppi(0, 32), "EINVAL"),
            (ppi(2, 20), "EINVAL"),
            (ppi(256, 20), "EINVAL"),
            (1 << 32 | spi(40), "EINVAL"),
        ],
        ids=str,
    )
    @BOTH
    def test_what_kvm_refuses(self, gic: int, irq: int, reason: str) -> None:
        arm = Arm(gic, 2)
        before = arm.vm.save()
        for level in (0, 1):
            with refused(reason):
                arm.line(irq, level)
            with refused(reason):
                arm.vm.irq_lines([spi(40) << 1 | 1, irq << 1 | level])
        assert arm.vm.save() == before

    def test_without_a_gic_a_vcpu_has_an_irq_and_a_fiq(self) -> None:
        arm = Arm(3, 2, ready=False)
        for irq in (spi(40), ppi(0, 20)):
            with refused("ENXIO"):
                arm.line(irq, 1)
        with refused("EINVAL"):
            arm.line(2, 1)
        with refused("EINVAL"):
            arm.line(5 << 16, 1)
        assert arm.line(1 << 16 | 1, 1) == 0
        assert arm.mrs(0xC608, 1) == 0x40
        assert arm.mrs(0xC608, 0) == 0
        assert Wfi(arm, 1).outcome == (0, 3)
        arm.line(1 << 16, 1)
        assert Wfi(arm, 1).outcome == (0, 2)
        arm.line(1 << 16, 0)
        arm.line(1 << 16 | 1, 0)
        assert arm.mrs(0xC608, 1) == 0


class TestSources:
    @BOTH
    def test_levels_are_ored(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        one, other = arm.vm.open_source("one"), arm.vm.open_source("other")
        for source in (one, other):
            arm.vm.irq_line(spi(40), True, source)
        arm.vm.irq_line(spi(40), False, one)
        arm.line(spi(40), 0)
        assert arm.pending(40)
        arm.vm.close_source(other)
        assert not arm.pending(40)

    @BOTH
    def test_descriptions_have_kvm_s_numbers(self, gic: int) -> None:
        arm = Arm(gic, 2)
        source = arm.vm.open_source("one")
        arm.vm.irq_lines([irq << 1 | 1 for irq in (ppi(1, 20), spi(63), spi(32))], source)
        arm.line(ppi(0, 31), 1)
        description = arm.vm.describe()
        assert description.sources[0].asserted == [spi(32), spi(63), ppi(1, 20)]
        assert description.asserted == [ppi(0, 31)]

    def test_an_edge_is_seen_while_another_source_is_high(self) -> None:
        arm = Arm(2)
        arm.configure(40)
        source = arm.vm.open_source("one")
        arm.line(spi(40), 1)
        assert arm.take() == 40
        arm.vm.irq_line(spi(40), True, source)
        assert arm.take() == 40

    def test_sources_hold_lines_as_far_as_there_is_room(self) -> None:
        arm = Arm(3, 4)
        sources: list[LineSource] = []
        with refused("ENOSPC"):
            for number in range(4096):
                sources.append(arm.vm.open_source(str(number)))
                arm.vm.irq_line(ppi(3, 31), True, sources[-1])
        assert len(sources) > 1000
        restored = Arm64Vm.restored("again", MAX_VCPUS, arm.vm.save())
        assert restored.describe() == arm.vm.describe() or restored.save() == arm.vm.save()

    def test_the_kernel_s_tracepoints(self) -> None:
        class Seen(Observer):
            def __init__(self) -> None:
                self.calls: list[tuple[Any, ...]] = []

            def kvm_irq_line(self, *fields: Any) -> None:
                self.calls.append(("kvm_irq_line", *fields))

            def vgic_update_irq_pending(self, *fields: Any) -> None:
                self.calls.append(("vgic_update_irq_pending", *fields))

            def kvm_timer_update_irq(self, *fields: Any) -> None:
                self.calls.append(("kvm_timer_update_irq", *fields))

        arm, seen = Arm(3, 2), Seen()
        arm.vm.attach(seen)
        arm.line(ppi(1, 20), 1)
        arm.line(spi(40), 0)
        assert seen.calls == [
            ("kvm_irq_line", 2, 1, 20, 1),
            ("vgic_update_irq_pending", 1, 20, True),
            ("kvm_irq_line", 1, 0, 40, 0),
            ("vgic_update_irq_pending", 0, 40, False),
        ]
        seen.calls.clear()
        arm.msr(0xDF19, 1)  # CNTV_CTL_EL0, whose compare value is 0
        assert ("kvm_timer_update_irq", 0, 27, True) in seen.calls

    def test_tracepoints_have_a_vcpu_s_id(self) -> None:
        class Seen(Observer):
            vcpus: tuple[int, ...] = ()

            def vgic_update_irq_pending(self, vcpu: int, intid: int, level: bool) -> None:  # noqa: ARG002
                self.vcpus += (vcpu,)

        arm, seen = Arm(3, 0, ready=False), Seen()
        for vcpu in (5, 1):
            arm.vm.create_vcpu(vcpu)
            arm.vm.vcpu_init(vcpu, None, 0)
        arm.create_gic()
        arm.vm.attach(seen)
        arm.line(ppi(1, 20), 1)
        arm.line(ppi(5, 20), 1)
        assert seen.vcpus == (1, 5)


class TestRouting:
    def test_gsi_n_is_spi_n_at_first(self) -> None:
        arm = Arm(3, interrupts=96)
        assert list(arm.vm.routing()) == [PinRoute(n, 0, n) for n in range(64)]

    def test_a_table_from_before_the_initialisation_is_replaced(self) -> None:
        arm = Arm(3, 1, ready=False)
        arm.vm.set_routing([PinRoute(0, 0, 9)])
        with refused("ENXIO"):
            arm.vm.routing()
        arm.create_gic()
        assert arm.vm.routing()[0] == PinRoute(0, 0, 0)

    @pytest.mark.parametrize(
        "routes",
        [
            [PinRoute(0, 0, 988)],
            [PinRoute(0, 1, 0)],
            [PinRoute(4096, 0, 0)],
            [PinRoute(0, 0, 0), PinRoute(0, 0, 1)],
            [PinRoute(0, 0, 0, flags=1)],
            [MsiRoute(0, 0, 0), PinRoute(0, 0, 1)],
        ],
        ids=str,
    )
    def test_what_kvm_refuses(self, routes: list[PinRoute | MsiRoute]) -> None:
        arm = Arm(3)
        with refused("EINVAL"):
            arm.vm.set_routing(routes)
        assert len(arm.vm.routing()) == 32

    def test_msis_need_an_interrupt_translation_service(self) -> None:
        arm = Arm(3)
        arm.vm.set_routing([MsiRoute(0, 0x08020040, 40, 1), PinRoute(1, 0, 987)])
        for flags, reason in ((0, "ENODEV"), (1, "ENODEV"), (2, "EINVAL")):
            with refused(reason):
                arm.vm.signal_msi(0x08020040, 40, flags)
        arm.vm.create_device(DeviceType.ITS, 0)
        with refused("EINVAL"):
            arm.vm.signal_msi(0x08020040, 40, 1)
        with refused("EINVAL"):
            Arm(3, ready=False).vm.signal_msi(0x08020040, 40)


class Eventfd:
    """An irqfd as the port makes it."""

    def __init__(self, arm: Arm, gsi: int, *, resamples: bool = False) -> None:
        self._arm = arm
        self.resampled = 0
        self.source = arm.vm.open_source("irqfd")
        self.irqfd: Irqfd = arm.vm.add_irqfd(self.source, gsi, self._count if resamples else None)

    def _count(self, event: Event) -> None:
        assert isinstance(event, GsiResampled)
        self.resampled += event.count

    def signal(self) -> None:
        self._arm.vm.trigger(self.irqfd)

    def remove(self) -> None:
        self._arm.vm.remove_irqfd(self.irqfd)


@BOTH
class TestIrqfds:
    def test_a_signal_raises_a_level_spi_and_never_lowers_it(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        Eventfd(arm, 8).signal()
        assert arm.take() == 40
        assert arm.take() == 40
        arm.line(spi(40), 0)
        assert arm.take() == SPURIOUS

    def test_a_signal_is_an_edge_of_an_edge_triggered_spi(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40)
        eventfd = Eventfd(arm, 8)
        for _ in range(2):
            eventfd.signal()
            assert [arm.take(), arm.take()] == [40, SPURIOUS]

    def test_an_eventfd_that_was_written_before_it_is_assigned_raises_and_lowers(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        arm.vm.trigger(Eventfd(arm, 8).irqfd, assigned=True)
        assert arm.take() == SPURIOUS
        arm.configure(40)
        arm.vm.trigger(Eventfd(arm, 8).irqfd, assigned=True)
        assert arm.take() == 40

    def test_a_resampled_spi_falls_when_the_guest_ends_it(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        eventfd, twin = Eventfd(arm, 8, resamples=True), Eventfd(arm, 8, resamples=True)
        heard: list[Event] = []
        arm.vm.subscribe((), heard.append, [8])
        eventfd.signal()
        assert [arm.take(), arm.take()] == [40, SPURIOUS]
        assert (eventfd.resampled, twin.resampled) == (1, 1)
        assert heard == [GsiAcknowledged(8)]
        eventfd.signal()
        eventfd.remove()
        assert arm.pending(40)
        twin.remove()
        assert not arm.pending(40), "the last resampler lowers the SPI"

    def test_a_session_resamples_by_gsi_and_raises_by_line(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        heard: list[Event] = []
        source = arm.vm.open_source("resampler", resampled=[8], listener=heard.append)
        with refused("EINVAL", "resampled"):
            arm.vm.irq_line(spi(40), False, source)
        arm.vm.irq_line(spi(40), True, source)
        assert [arm.take(), arm.take()] == [40, SPURIOUS]
        assert heard == [GsiResampled(8, 1)]

    def test_what_raises_a_line_by_ioctl_is_lowered_by_a_resampler_too(self, gic: int) -> None:
        """In KVM a line has one level, whoever has set it."""
        arm = Arm(gic)
        arm.configure(40, level=True)
        Eventfd(arm, 8, resamples=True)
        arm.line(spi(40), 1)
        assert [arm.take(), arm.take()] == [40, SPURIOUS]
        assert arm.vm.describe().asserted == []

    def test_routes_lead_irqfds_elsewhere(self, gic: int) -> None:
        arm = Arm(gic)
        for intid in (40, 41):
            arm.configure(intid)
        eventfd = Eventfd(arm, 8)
        arm.vm.set_routing([PinRoute(8, 0, 9), PinRoute(9, 0, 987)])
        eventfd.signal()
        assert arm.take() == 41
        for gsi in (9, 10, 5000):
            Eventfd(arm, gsi).signal()
        assert arm.take() == SPURIOUS

    def test_there_are_none_before_the_initialisation(self, gic: int) -> None:
        arm = Arm(gic, 1, ready=False)
        with refused("EAGAIN"):
            Eventfd(arm, 8)
        arm.create_gic()
        Eventfd(arm, 8)

    def test_a_closed_source_s_irqfd_is_silent(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40)
        eventfd = Eventfd(arm, 8)
        arm.vm.close_source(eventfd.source)
        eventfd.signal()
        assert arm.take() == SPURIOUS

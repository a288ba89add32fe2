"""How a standard KVM departs from irqchipd, tested on any machine with its recorded answers."""

from __future__ import annotations

import pytest

from tests.builds import needs_sources
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.found import STANDARD_FOUND, Found
from tests.conformance.hosts import STANDARD, SVM, Departure, Host, departures
from tests.conformance.machines import Answer


def imitated(found: Found, host: Host) -> tuple[Answer, ...]:
    answers = found.answers_of(DaemonMachine(host))
    return tuple(host.filtered(op, answer) for op, answer in zip(found.ops, answers, strict=True))


@needs_sources
@pytest.mark.parametrize("found", STANDARD_FOUND, ids=str)
def test_a_standard_kvm_departs_as_the_table_says(found: Found) -> None:
    assert found.answers_of(DaemonMachine()) != found.answers
    assert imitated(found, STANDARD) == found.answers


@needs_sources
@pytest.mark.parametrize("departure", STANDARD.departures, ids=lambda one: one.about)
def test_every_departure_in_the_table_is_needed_by_a_recording(departure: Departure) -> None:
    host = Host(one for one in STANDARD.departures if one is not departure)
    assert any(imitated(found, host) != found.answers for found in STANDARD_FOUND)


def test_a_kernels_departures_depend_on_its_release_and_processor() -> None:
    assert not departures("6.18.44")
    assert len(departures("6.15.2-amd64")) == 1
    assert len(departures("6.14")) == 2
    assert len(departures("7.0", [SVM])) == 2

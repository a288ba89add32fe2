"""The page in a headless Chromium: what a person sees, and pausing and stepping back."""

from __future__ import annotations

import os
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import pytest

from irqchip_client import Client, ops
from tests.page.browser import Browser, needs_chromium
from tests.page.guests import DISK, SERIAL, VECTORS, arm64_vm, eoi, play, s390_vm, x86_vm
from tests.page.pages import Page

pytestmark = needs_chromium

ISR0 = "document.querySelector('[data-isr]').dataset.isr"
# Keeps the history that the page gets when it is paused.
KEEP_HISTORY = """
const ask = window.fetch;
window.fetch = async (path) => {
  const answer = await ask(path);
  if (path.endsWith("/history")) window.kept = await answer.clone().json();
  return answer;
};
"""
IRR0 = "document.querySelector('[data-irr]').dataset.irr"
LINE = f"document.querySelector('[data-line=\"{DISK}\"]').innerText"


@pytest.fixture(scope="module")
def client(served: Page) -> Iterator[Client]:
    with served.daemon.connect() as client:
        x86_vm(client)
        arm64_vm(client)
        s390_vm(client)
        yield client


def test_a_line_a_vector_and_steps_back(chromium: Browser, served: Page, client: Client) -> None:
    vm = client.vm("pc")
    chromium.look(served.url, "pc")
    assert "low" in chromium.evaluate(LINE)
    vm.line(DISK).raise_()
    chromium.wait(f"{LINE}.includes('high')")
    assert "remote IRR" in chromium.evaluate(f"document.querySelector('[data-pin=\"{DISK}\"]').innerText")

    vm.line(SERIAL).pulse()
    vm.vcpu(0).acknowledge()
    chromium.wait(f"{ISR0} === '{VECTORS[SERIAL]}'")
    eoi(vm, 0)
    chromium.wait(f"{ISR0} === ''")

    chromium.press("p")
    chromium.wait("document.querySelector('#status.paused')")
    vm.line(DISK).lower()  # happens after the pause, and so is not seen
    assert chromium.evaluate(ISR0) == ""
    chromium.press("j")
    while "kvm_inj_virq" not in chromium.evaluate("document.getElementById('position').innerText"):
        chromium.press("j")
    assert chromium.evaluate(ISR0) == str(VECTORS[SERIAL])
    chromium.press("Home")
    assert "event 1 " in chromium.evaluate("document.getElementById('position').innerText")
    chromium.press("End")
    assert chromium.evaluate(ISR0) == ""
    assert "high" in chromium.evaluate(LINE)
    chromium.press("p")
    chromium.wait("document.querySelector('#status.live')")
    chromium.wait(f"{LINE}.includes('low')")
    assert chromium.console == []


def test_steps_show_the_state_as_it_was_under_load(chromium: Browser, served: Page, client: Client) -> None:
    vm = client.vm("pc")
    chromium.look(served.url, "pc")
    chromium.evaluate(KEEP_HISTORY)
    over = threading.Event()

    def drive() -> None:
        with vm.session("busy") as session:
            interrupt = [ops.irq_line(SERIAL, True), ops.irq_line(SERIAL, False), ops.ack_interrupt(0)]
            while not over.is_set():
                session.run([*interrupt, *interrupt[:2], ops.mmio_write(0, 0xFEE0_00B0, 0)] * 8)

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        time.sleep(0.3)
        chromium.press("p")
        chromium.wait("document.querySelector('#status.paused')")
    finally:
        over.set()
        driver.join()
    history = chromium.evaluate("window.kept")
    lapics, lapic = {}, None
    for state in history["states"]:
        lapic = state["parts"].get("lapic0", lapic)
        lapics[state["number"]] = lapic
    states, seen = sorted(lapics), set()
    assert states[-1] >= history["events"][-1][0], "there is a state after the last event"
    chromium.press("Home")
    for _ in range(40):
        chromium.press("k")
        shown, position = chromium.evaluate(f"[[{ISR0}, {IRR0}], document.getElementById('position').innerText]")
        number = int(position.split()[1])
        state = states[bisect_left(states, number)]
        later = re.search(r", state (\d+) events? later", position)
        assert int(later[1] if later else 0) == state - number
        assert shown == [" ".join(map(str, lapics[state][kind])) for kind in ("isr", "irr")], position
        seen.add(tuple(shown))
    assert len(seen) > 1, "the steps show different states"
    assert chromium.console == []


def test_counts_are_made_while_they_are_open(chromium: Browser, served: Page, client: Client) -> None:
    chromium.look(served.url, "pc")
    chromium.evaluate("document.querySelector('#counts summary').click()")
    chromium.wait("document.getElementById('counts').innerText.includes('Counting has begun')")
    vm = client.vm("pc")
    vm.line(SERIAL).pulse()
    vm.vcpu(0).acknowledge()
    eoi(vm, 0)
    chromium.wait(f"document.getElementById('counts').innerText.includes('{VECTORS[SERIAL]:#x}')")
    assert chromium.console == []


def test_cursors_by_the_keyboard(chromium: Browser, served: Page, client: Client) -> None:
    assert client
    chromium.look(served.url, "pc")
    chromium.evaluate("document.getElementById('wave').focus()")
    for key in ("a", "b", "ArrowRight", "ArrowRight"):
        chromium.press(key)
    text = chromium.evaluate("document.getElementById('cursors').innerText")
    assert "A -" in text
    assert "B \u2212 A" in text
    chromium.press("Escape")
    chromium.wait("document.getElementById('cursors').innerText === ''")


@pytest.mark.parametrize(("vm", "words"), [("arm", "Distributor"), ("mainframe", "Floating interrupts")])
def test_other_architectures(chromium: Browser, served: Page, client: Client, vm: str, words: str) -> None:
    chromium.look(served.url, vm)
    play(client, vm)
    seen = {"arm": "document.querySelector('[data-intid=\"36\"]')?.innerText.includes('active')"}
    seen["mainframe"] = "document.querySelector('[data-irq=virtio]')"
    chromium.wait(seen[vm])
    assert words in chromium.evaluate("document.body.innerText")
    assert chromium.console == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("vm", ["pc", "arm", "mainframe"])
def test_nothing_sticks_out(
    chromium: Browser, served: Page, client: Client, tmp_path: Path, vm: str, width: int
) -> None:
    """The page scrolls up and down alone; what is wide scrolls by itself."""
    chromium.look(served.url, vm, width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    play(client, vm)
    chromium.evaluate("new Promise((done) => setTimeout(done, 700))")  # all is drawn
    chromium.screenshot(Path(os.environ.get("IRQCHIPD_SCREENSHOTS", tmp_path)) / f"{vm}-{width}.png")


def test_a_deleted_vm_is_said_to_be_gone(chromium: Browser, served: Page, client: Client) -> None:
    vm = client.create_vm("short")
    assert vm
    chromium.look(served.url, "short")
    client.delete_vm("short")
    chromium.wait("document.querySelector('#status.lost')")

"""The page by axe-core's rules, its contrast, and its use by the keyboard alone.

axe-core is not in this repository: `make` gets a release of it from npm, which people trust more than a copy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from irqchip_client import Client
from tests.page.browser import Browser, needs_chromium
from tests.page.guests import arm64_vm, play, s390_vm, x86_vm
from tests.page.pages import Page

AXE = Path(sys.prefix) / "npm" / "node_modules" / "axe-core" / "axe.min.js"  # see Makefile

with_axe = pytest.mark.skipif(not AXE.exists(), reason="there is no axe-core: `make test` gets it, where there is npm")

_RUN = "axe.run(document, {options}).then(({{violations, incomplete}}) => ({{violations, incomplete}}))"
# Without what hides text from the rules for contrast: scrolled regions, and what stands over others.
_UNROLLED = (
    "section, .scroll, .tall {max-height: none !important; overflow: visible !important}",
    "nav {position: static !important}",
    "body {width: max-content !important}",
)


@pytest.fixture(scope="module")
def client(served: Page) -> Iterator[Client]:
    with served.daemon.connect() as client:
        x86_vm(client)
        arm64_vm(client)
        s390_vm(client)
        for name in ("pc", "arm", "mainframe"):
            play(client, name)
        yield client


def axe(chromium: Browser, options: str = "{}") -> dict[str, dict[str, list[Any]]]:
    """What axe-core reports: rules that are broken, and those that it can't decide, each with the elements."""
    found = chromium.evaluate(_RUN.format(options=options))
    return {
        kind: {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in rules}
        for kind, rules in found.items()
    }


@needs_chromium
@with_axe
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("vm", ["pc", "arm", "mainframe"])
def test_axe_finds_nothing(chromium: Browser, served: Page, vm: str) -> None:
    chromium.look(served.url, vm)
    chromium.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    chromium.evaluate(AXE.read_text())
    for width in (1280, 390):
        chromium.size(width, 900)
        for dark in (False, True):
            chromium.dark(dark)
            found = axe(chromium)
            assert found["violations"] == {}, (width, dark)
            assert found["incomplete"].keys() <= {"color-contrast"}, (width, dark)
    chromium.press("p")
    chromium.wait("document.querySelector('#status.paused')")
    for rule in _UNROLLED:
        chromium.evaluate(f"document.styleSheets[0].insertRule('{rule}')")
    chromium.size(3000, 8000)
    for dark in (False, True):
        chromium.dark(dark)
        found = axe(chromium, "{runOnly: ['color-contrast']}")
        assert found["violations"] == {}
        # A drawing's text, which test_colours_have_contrast is about.
        assert all(html.startswith("<text") for html in found["incomplete"].get("color-contrast", []))
    assert chromium.console == []


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    text = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    parts = [int(text[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_colours_have_contrast() -> None:
    """Also in drawings, which have the same colours: text of 4.5 to 1, and marks of 3 to 1."""
    style = files("irqchipd.page").joinpath("static", "page.css").read_text()
    palettes = [dict(re.findall(r"--([\w-]+): #([0-9a-f]+);", part)) for part in style.split("@media")[:2]]
    assert len(palettes) == 2
    for light_or_dark in palettes:
        panel = light_or_dark["panel"]
        for text in ("ink", "soft", "high", "serve", "wait", "mask", "error", "focus"):
            assert contrast(light_or_dark[text], panel) >= 4.5, text
            assert contrast(light_or_dark[text], light_or_dark["ground"]) >= 4.5, text
        for kind in ("high", "serve", "wait"):
            assert contrast(light_or_dark[kind], light_or_dark[f"{kind}-ground"]) >= 4.5, kind


FOCUSED = "document.activeElement"
NAME = "(one) => one.id || one.getAttribute('aria-label') || one.innerText"


@needs_chromium
@pytest.mark.usefixtures("client")
def test_tab_reaches_everything_and_shows_where_it_is(chromium: Browser, served: Page) -> None:
    chromium.look(served.url, "pc")
    chromium.press("p")
    chromium.wait("document.querySelector('#status.paused')")
    reachable = chromium.evaluate(
        "[...document.querySelectorAll('button:enabled, select, summary, [tabindex=\"0\"]')]"
        f".filter((one) => one.checkVisibility()).map({NAME})"
    )
    chromium.evaluate(f"{FOCUSED}.blur()")
    reached = []
    for _ in range(len(reachable) + 1):
        chromium.press("Tab")
        if chromium.evaluate(f"{FOCUSED} === document.body"):
            break
        reached.append(chromium.evaluate(f"({NAME})({FOCUSED})"))
        outline = chromium.evaluate(
            f"getComputedStyle({FOCUSED}).outlineStyle + getComputedStyle({FOCUSED}).outlineWidth"
        )
        assert outline == "solid2px", reached[-1]
    assert reached == reachable  # in the order of the page, and then the page is left


@needs_chromium
@pytest.mark.usefixtures("client")
def test_everything_can_be_done_by_the_keyboard(chromium: Browser, served: Page) -> None:
    chromium.look(served.url, "pc")
    chromium.evaluate("document.getElementById('pause').focus()")
    chromium.press("Enter")
    chromium.wait("document.querySelector('#status.paused')")
    chromium.evaluate("document.getElementById('first').focus()")
    chromium.press(" ")
    assert "(1 of " in chromium.evaluate("document.getElementById('position').innerText")
    chromium.evaluate("document.querySelector('#events button:last-of-type').focus()")
    chromium.press("Enter")
    chromium.press("p")
    chromium.wait("document.querySelector('#status.live')")
    chromium.evaluate("document.getElementById('span').focus()")
    chromium.press("ArrowDown")
    assert chromium.evaluate("document.getElementById('span').value") == "20"
    chromium.evaluate("document.getElementById('vm').focus()")
    chromium.press("ArrowUp")
    chromium.wait("location.hash !== '#pc' && document.querySelector('#status.live')")


@needs_chromium
def test_what_has_the_focus_keeps_it_while_the_page_changes(chromium: Browser, served: Page, client: Client) -> None:
    chromium.look(served.url, "pc")
    chromium.evaluate("document.querySelector('[aria-label=\"Table of lines\"]').focus()")
    chromium.evaluate("window.before = document.activeElement")
    client.vm("pc").line(7).raise_()
    chromium.wait("window.before !== document.activeElement")  # it was drawn anew
    assert chromium.evaluate(f"({NAME})({FOCUSED})") == "Table of lines"

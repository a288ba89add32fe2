"""The compiled form and the sources: which is imported, and that the command says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.builds import COMPILED


def version(pure: str) -> str:
    """What irqchipd --version says."""
    environment = {**os.environ, "IRQCHIPD_PURE": pure}
    command = [sys.executable, "-m", "irqchipd", "--version"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("pure", ["", "0"])
def test_the_command_says_which_form_it_runs(pure: str) -> None:
    assert version(pure).endswith("(compiled)" if COMPILED else "(pure Python)")


def test_a_variable_chooses_the_sources() -> None:
    assert version("1").endswith("(pure Python)")


def test_no_module_is_compiled_where_the_sources_are_chosen() -> None:
    script = "import sys, irqchipd.daemon; print([n for n in sys.modules if n.endswith('__mypyc')])"
    environment = {**os.environ, "IRQCHIPD_PURE": "1"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

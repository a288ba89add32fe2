"""The command line that every process of the demo has."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from examples.demo import VM
from irqchip_client import Client, NotFound, Session, Unavailable, connect


def parser(what: str) -> argparse.ArgumentParser:
    """A parser with the common options."""
    options = argparse.ArgumentParser(description=what)
    options.add_argument("--target", help="the daemon's address; by default as irqchipctl finds it")
    options.add_argument("--run", type=Path, required=True, help="the folder of the devices' register sockets")
    return options


def open_session(client: Client, name: str, *, vcpus: tuple[int, ...] = (), patience: float = 30.0) -> Session:
    """A Session on the demo's VM, which its vCPU process may still be making."""
    deadline = time.monotonic() + patience
    vm = client.vm(VM)
    while time.monotonic() < deadline:
        with suppress(NotFound, Unavailable):
            if vm.info().vcpus:  # made last of all
                break
        time.sleep(0.05)
    return vm.session(name, vcpus=vcpus)


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, flush=True)


def stop_on_sigterm() -> None:
    """End as usual, with the Session closed, when told to stop."""

    def stop(*_: object) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)


__all__ = ["connect", "open_session", "parser", "say", "stop_on_sigterm"]

"""A Docker engine of the tests' own, which leaves nothing behind.

It lives in a PID and a mount namespace of its own: when its first process ends, for whatever reason, the kernel kills
all others, including those in containers, and drops their mounts. It uses no bridge and no firewall rules, and its
socket, state and images are in one folder. A keeper (this module, run as a program) ends the engine and removes
that folder when the tests' process has ended, in whatever way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 60.0

# Paths outside their folders that the engine and containerd always write to.
SHADOWED = ("/etc/docker", "/run/containerd", "/run/docker")
IN_NAMESPACE = f"""
set -e
for folder in {" ".join(SHADOWED)}; do mkdir -p $folder; mount -t tmpfs -o mode=700 tmpfs $folder; done
exec dockerd --config-file "$1"
"""


class NoEngineError(Exception):
    """No engine can run here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    folder: Path
    """All its files; what is put there goes with it."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which docker and Compose reach this engine and no other."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        # BuildKit needs a component of its own (buildx) that not every installation has.
        return {**own, "DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_BUILDKIT": "0"}


def compose_command() -> list[str]:
    """The installed Docker Compose; NoEngineError without one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        with suppress(FileNotFoundError):
            if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
                return command
    raise NoEngineError("Docker Compose is not installed")


def _check_can_run() -> None:
    if os.geteuid() != 0:
        raise NoEngineError("an engine of one's own needs root")
    for program in ("dockerd", "docker", "iptables", "unshare", "setpriv"):
        if shutil.which(program) is None:
            raise NoEngineError(f"{program} is not installed")


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine for the duration of the context; NoEngineError if none can run."""
    _check_can_run()
    keeper = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C must reach only the tests, which then take their containers down
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        word, _, what = keeper.stdout.readline().strip().partition(" ")
        if word != "at":
            raise NoEngineError(what)
        yield Engine(Path(what))
    finally:
        keeper.stdin.close()
        if keeper.wait():
            raise RuntimeError("the engine's keeper failed")


def keep() -> None:
    """Run an engine until standard input ends; prints its folder, or why there is none."""
    folder = Path(tempfile.mkdtemp(prefix="irqchipd-engine-"))
    process = None
    try:
        process = _start(folder)
        _wait_until_it_answers(process, Engine(folder))
        print("at", folder, flush=True)
        sys.stdin.read()
    except NoEngineError as error:
        print("none", error, flush=True)
    finally:
        if process is not None:
            _end(process)
        _remove(folder)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    configuration = {
        "hosts": [f"unix://{folder}/docker.sock"],
        "data-root": f"{folder}/data",
        "exec-root": f"{folder}/exec",
        "pidfile": f"{folder}/docker.pid",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{folder.name}",
        "bridge": "none",
        "iptables": False,
        "ip-forward": False,
    }
    (folder / "daemon.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        # The kernel kills unshare when the keeper ends, then unshare's child, which is PID 1 in the namespace.
        unshare = "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc"
        return subprocess.Popen(
            [*unshare.split(), "sh", "-c", IN_NAMESPACE, "sh", str(folder / "daemon.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _wait_until_it_answers(process: subprocess.Popen[bytes], engine: Engine) -> None:
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(["docker", "version"], env=engine.environment, capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            last = (engine.folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
            raise NoEngineError(f"dockerd does not start: {' '.join(last) or 'it says nothing'}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    # When a PID namespace's first process has ended, all its other processes have ended too.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children or [str(process.pid)]:
        os.kill(int(child), signal.SIGKILL)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(folder: Path) -> None:
    """Remove the engine's files and control groups, which the kernel may hold for a moment."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        groups = [*Path("/sys/fs/cgroup").glob(folder.name), *Path("/sys/fs/cgroup").glob(f"*/{folder.name}")]
        for group in groups:
            for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    inner.rmdir()
            with suppress(OSError):
                group.rmdir()
        if not folder.exists() and not any(group.exists() for group in groups):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engine left {[str(path) for path in (folder, *groups) if path.exists()]}")
        time.sleep(0.05)


if __name__ == "__main__":
    keep()

"""The project's docker-compose.yml, run by an engine of the tests' own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compose.engine import Engine
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
PROJECT = "irqchipd-tests"
# Version 1 of docker compose lists these, too.
OF_A_PROFILE = {"forward", "prometheus", "grafana"}


@dataclass(frozen=True)
class Composition:
    """The services, and the engine that runs them."""

    engine: Engine
    compose_command: Sequence[str]

    def compose(self, *arguments: str, seconds: float = 200.0, **override: Any) -> tuple[int, str]:
        """Run docker compose; returns its exit status, and its and the services' output.

        Arguments:
            arguments: the command, such as "up", and its options.
            seconds: the time limit; TimeoutExpired if it is exceeded.
            override: settings of services that override docker-compose.yml.
        """
        files = ["--file", str(ROOT / "docker-compose.yml")]
        if override:
            path = self.engine.folder / "override.json"  # JSON is valid YAML
            path.write_text(json.dumps({"services": override}))
            files += ["--file", str(path)]
        done = subprocess.run(
            [*self.compose_command, "--project-name", PROJECT, *files, *arguments],
            env=self.engine.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout

    def up(self, *arguments: str, **override: Any) -> None:
        """Start services in the background, after the services they depend on are healthy."""
        status, output = self.compose("up", "--detach", *arguments, **override)
        assert status == 0, output

    def down(self) -> None:
        """Remove all containers and volumes."""
        self.compose("down", "--volumes", "--timeout", "2")

    def docker(self, *arguments: str) -> str:
        """A docker command's output; CalledProcessError if the command fails."""
        command = ["docker", *arguments]
        return subprocess.run(command, env=self.engine.environment, capture_output=True, text=True, check=True).stdout

    def services(self) -> set[str]:
        """The names of all services that have no profile."""
        status, output = self.compose("config", "--services")
        assert status == 0, output
        return set(output.split()) - OF_A_PROFILE

    def containers(self) -> dict[str, Any]:
        """The output of `docker inspect` for each service's container."""
        ids = self.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        found = json.loads(self.docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def run_python(self, service: str, program: str) -> Any:
        """Run a Python program in a service's running container, and decode the JSON that it prints."""
        return json.loads(self.docker("exec", self.containers()[service]["Id"], "python3", "-c", program))

    def kill(self, service: str) -> None:
        """Kill a service's processes, as a crash would.

        `docker kill` does not do: the engine does not restart a container that was stopped on purpose.
        """
        command = ["docker", "exec", self.containers()[service]["Id"], "sh", "-c", "kill -KILL -1"]
        # The container ends before the command's own status arrives.
        subprocess.run(command, env=self.engine.environment, capture_output=True, check=False)

    def wait_until_said(self, container: str, what: str, seconds: float = 150.0) -> None:
        """Wait until a container's log contains a text."""
        deadline = time.monotonic() + seconds
        while what not in (said := self.docker("logs", container)):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def wait_until_restarted(self, service: str, before: int, seconds: float = PATIENCE) -> None:
        """Wait until the engine has restarted a service's container more than `before` times and it runs."""
        deadline = time.monotonic() + seconds
        while True:
            container = self.containers()[service]
            if container["RestartCount"] > before and container["State"]["Running"]:
                return
            assert time.monotonic() < deadline, f"{service} was not restarted: {container['State']}"
            time.sleep(0.1)

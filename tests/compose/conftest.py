"""docker-compose.yml in an engine of the tests' own, with its image built."""

import os
from collections.abc import Iterator

import pytest

from tests.compose.base_image import provide_base_image
from tests.compose.composition import Composition
from tests.compose.engine import NoEngineError, compose_command, running_engine

# A build reaches the index over the machine's network.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@pytest.fixture(scope="module")
def built() -> Iterator[Composition]:
    """The composition, with its image built from the Dockerfile; no service runs."""
    try:
        command = compose_command()
        with running_engine() as engine:
            composition = Composition(engine, command)
            arguments = {name: os.environ[name] for name in PROXIES if name in os.environ}
            arguments["BASE_IMAGE"] = provide_base_image(engine)
            status, output = composition.compose("build", daemon={"build": {"network": "host", "args": arguments}})
            assert status == 0, output
            yield composition
    except NoEngineError as error:
        pytest.skip(f"docker-compose.yml cannot be run here: {error}")


@pytest.fixture
def composition(built: Composition) -> Iterator[Composition]:
    """The composition; it is taken down after each test."""
    try:
        yield built
    finally:
        built.down()


@pytest.fixture(scope="module")
def running(built: Composition) -> Iterator[Composition]:
    """The composition with all services running; the script waits until the disk is killed."""
    try:
        built.up(script={"environment": {"DISK_DIES": "60"}})
        yield built
    finally:
        built.down()

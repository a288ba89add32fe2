"""The daemon's process, as tests and demonstrations start it."""

import os
from pathlib import Path

import pytest

import irqchip_client as irqchip
from irqchip_client._daemon import start_daemon

pytest_plugins = "pytester"


def test_it_serves_and_leaves_nothing_behind() -> None:
    with start_daemon(listen=["tcp://127.0.0.1:0"]) as daemon:
        assert [target.partition(":")[0] for target in daemon.targets] == ["unix", "tcp"]
        for target in daemon.targets:
            with irqchip.connect(target) as client:
                assert client.vms() == []
        directory = Path(daemon.target.removeprefix("unix://")).parent
        assert directory.is_dir()
    assert daemon.process.returncode == 0
    assert not directory.exists()


def test_a_daemon_that_does_not_start_shows_why() -> None:
    with pytest.raises(irqchip.IrqchipError, match="No such option"), start_daemon(arguments=["--nonsense"]):
        pass


def test_a_daemon_that_the_test_kills_is_no_error() -> None:
    with start_daemon() as daemon:
        os.kill(daemon.pid, 9)
    assert daemon.process.returncode == -9


def test_users_have_the_fixtures_by_installing_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_first(irqchip_server, irqchip_client):
            assert irqchip_client.target == irqchip_server.target
            irqchip_client.create_vm("leftover")

        def test_second(irqchip_client):
            assert irqchip_client.vms() == []
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_a_daemon_that_died_between_tests_is_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(irqchip_server):
            irqchip_server.process.kill()
            irqchip_server.process.wait()
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*irqchipd died with status -9*"])

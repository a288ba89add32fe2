"""docker-compose.yml, run in a real engine."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.compose.composition import Composition
from tests.waiting import eventually

# The demo: the service whose exit status decides, its output on success, and the service that the test kills.
DECIDES = "script"
SAYS = "every answer was as expected"
KILLED = "disk"

# An engine is started, and an image built, before the first test.
pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]

# Reports on a container's processes, run inside it.
LOOK = """
import errno, glob, json, os
def fields(path):
    return dict(line.split(":", 1) for line in open(path).read().splitlines())
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return errno.errorcode[error.errno]
everything = [fields(path) for path in glob.glob("/proc/[0-9]*/status")]
# The service's own. A health check that is just being started is still the engine's process.
processes = [process for process in everything if 1 in (int(process["Pid"]), int(process["PPid"]))]
print(json.dumps({
    "users": sorted({process["Uid"].split()[1] for process in processes}),
    "groups": sorted({process["Gid"].split()[1] for process in processes}),
    "capabilities": sorted({process[name].strip() for process in processes for name in ("CapEff", "CapPrm", "CapBnd")}),
    "no new privileges": sorted({process["NoNewPrivs"].strip() for process in processes}),
    "networks": os.listdir("/sys/class/net"),
    "writing": [write(path) for path in ("/written", "/app/written", "/tmp/written")],
}))
"""

# Whether something listens at port 9464, and what the daemon's metrics say there, inside the forwarder's container.
LISTENS = """
import json, socket
with socket.socket() as asking:
    print(json.dumps(asking.connect_ex(("127.0.0.1", 9464)) == 0))
"""
SCRAPE = """
import json, urllib.request
with urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=10) as answer:
    lines = answer.read().decode().splitlines()
print(json.dumps([line for line in lines if line.startswith("irqchipd_vms ")]))
"""


def test_the_image_is_small_and_has_the_projects_wheel_without_build_tools(built: Composition) -> None:
    program = (
        "import importlib.metadata as m, importlib.util as u, json;"
        "print(json.dumps([json.loads(m.distribution('irqchipd').read_text('direct_url.json'))['url'],"
        " [name for name in ('pip', 'hatchling') if name in {d.name for d in m.distributions()}]]))"
    )
    url, left_behind = json.loads(built.docker("run", "--rm", "--network=none", "irqchipd", "python3", "-c", program))
    assert url.endswith(".whl")
    assert left_behind == []
    image = json.loads(built.docker("image", "inspect", "irqchipd"))[0]
    assert image["Config"]["User"] == "10001:10001"
    assert image["Size"] < 250e6  # bytes, of which some 130 million are Python's image


def test_the_demo_runs_to_its_end(composition: Composition) -> None:
    status, output = composition.compose("up", "--no-color", "--exit-code-from", DECIDES)
    assert status == 0, output
    assert SAYS in output


def test_a_failed_health_check_fails_the_demo(composition: Composition) -> None:
    broken = {"healthcheck": {"test": ["CMD", "false"], "interval": "1s", "timeout": "5s", "retries": 1}}
    status, output = composition.compose("up", "--no-color", "--exit-code-from", DECIDES, daemon=broken)
    assert status != 0
    assert "is unhealthy" in output


def test_the_forwarder_of_the_metrics_profile_reaches_the_daemons_socket(composition: Composition) -> None:
    composition.up("forward")
    assert composition.containers().keys() == {"daemon", "forward"}
    eventually(lambda: composition.run_python("forward", LISTENS))
    assert composition.run_python("forward", SCRAPE) == ["irqchipd_vms 0.0"]
    mounts = composition.containers()["forward"]["Mounts"]
    assert [(mount["Destination"], mount["RW"]) for mount in mounts] == [("/run/metrics", False)]


def test_services_have_no_unneeded_rights(running: Composition) -> None:
    containers = running.containers()
    assert containers.keys() == running.services()
    for service, container in containers.items():
        limits = container["HostConfig"]
        assert limits["Memory"] > 0, service
        assert limits["PidsLimit"] > 0, service
        assert limits["Init"], service
        assert not limits["Privileged"], service
        assert running.run_python(service, LOOK) == {
            "users": ["10001"],
            "groups": ["10001"],
            "capabilities": ["0" * 16],
            "no new privileges": ["1"],
            "networks": ["lo"],
            "writing": ["EROFS", "EROFS", "EROFS"],
        }, service


def test_only_the_listening_service_can_write_to_a_volume_of_sockets(running: Composition) -> None:
    mounts = [mount for container in running.containers().values() for mount in container["Mounts"]]
    assert {mount["Type"] for mount in mounts} == {"volume"}
    writers = Counter(mount["Name"] for mount in mounts if mount["RW"])
    assert writers == {mount["Name"]: 1 for mount in mounts}


def test_a_killed_device_is_restarted_and_the_demo_goes_on(running: Composition) -> None:
    """The guest is reading the disk just then: it sees an error, and reads again when the disk is back."""
    decides = running.containers()[DECIDES]["Id"]
    running.wait_until_said(decides, "kill the disk now")
    running.kill(KILLED)
    running.wait_until_restarted(KILLED, before=0)
    assert running.docker("wait", decides).strip() == "0"
    said = running.docker("logs", decides)
    assert "disk: no answer at sector" in said
    assert "the disk was gone, and is back" in said
    assert SAYS in said

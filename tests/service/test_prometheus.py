"""examples/metrics with Prometheus' own programs, where they are installed: promtool, and Prometheus itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from irqchip_client._daemon import start_daemon
from tests.service.test_metrics import daemon, get, pc
from tests.this_machine import free_port
from tests.waiting import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "examples/metrics"
ALERTS = EXAMPLES / "alerts.yml"


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: on Debian, apt-get install prometheus")
    return path


def promtool(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def queries() -> list[str]:
    """The dashboard's queries, with values in place of Grafana's variables."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("expr"), str):
                found.append(re.sub(r"\$__(rate_)?interval\b", "1m", node["expr"]))
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(json.loads((EXAMPLES / "grafana/irqchipd.json").read_text()))
    assert found
    return found


def test_promtool_accepts_the_configuration_and_the_alerts() -> None:
    assert "SUCCESS" in promtool("check", "config", str(EXAMPLES / "prometheus.yml"))


def test_promtool_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", str(path))


def test_promtool_finds_no_fault_in_the_daemons_metrics() -> None:
    with daemon("--metrics-vms", "1") as running, running.connect() as client:
        pc(client, "vm")
        _, text = get(running)
    own = "".join(part for part in re.split(r"(?=^# HELP )", text, flags=re.M) if part.startswith("# HELP irqchipd_"))
    assert own
    assert promtool("check", "metrics", given=own) == ""


# An alert, the series with which it fires, how long that takes, and labels of the alert; and the series with which not.
LATE = 'irqchipd_timer_lateness_seconds_bucket{le="%s"}'
FIRING: dict[str, tuple[dict[str, str], str, dict[str, str], dict[str, str]]] = {
    "IrqchipdDown": ({'up{job="irqchipd"}': "0x20"}, "1m", {"job": "irqchipd"}, {'up{job="irqchipd"}': "1x20"}),
    "IrqchipdTimersLate": (
        {LATE % "0.067108864": "0x60", LATE % "0.268435456": "0+10x60", LATE % "+Inf": "0+10x60"},
        "12m",
        {},
        {LATE % "0.067108864": "0+10x60", LATE % "0.268435456": "0+10x60", LATE % "+Inf": "0+10x60"},
    ),
    "IrqchipdEventsDropped": (
        {"irqchipd_dropped_events_total": "0+1x60"},
        "6m",
        {},
        {"irqchipd_dropped_events_total": "7x60"},
    ),
    "IrqchipdNearlyFull": (
        {"irqchipd_sessions": "95x60", 'irqchipd_limit{limit="sessions"}': "100x60"},
        "3m",
        {},
        {"irqchipd_sessions": "80x60", 'irqchipd_limit{limit="sessions"}': "100x60"},
    ),
    "IrqchipdInterruptsSpurious": (
        {"irqchipd_interrupts_spurious_total": "0+2x60", "irqchipd_interrupts_delivered_total": "0+10x60"},
        "12m",
        {},
        {"irqchipd_interrupts_spurious_total": "0+1x60", "irqchipd_interrupts_delivered_total": "0+20x60"},
    ),
    "IrqchipdOperationsRefused": (
        {
            'irqchipd_operation_errors_total{operation="irq_line"}': "0+2x60",
            'irqchipd_operations_total{operation="irq_line"}': "0+10x60",
        },
        "12m",
        {"operation": "irq_line"},
        {
            'irqchipd_operation_errors_total{operation="irq_line"}': "0x60",
            'irqchipd_operations_total{operation="irq_line"}': "0+10x60",
        },
    ),
}


def test_each_alert_fires_when_it_should_and_not_else(tmp_path: Path) -> None:
    assert re.findall(r"alert: (\w+)", ALERTS.read_text()) == list(FIRING)
    tests = []
    for alert, (fires, after, labels, fires_not) in FIRING.items():
        (text,) = re.findall(rf"alert: {alert}\n(.*?)(?:- alert|\Z)", ALERTS.read_text(), re.S)
        says = dict(re.findall(r"(severity|summary|description): (?:\"|)(.*?)[}\"]?\n", text))
        says = {name: said.replace("{{ $labels.operation }}", "irq_line") for name, said in says.items()}
        firing = {"exp_labels": {"severity": says.pop("severity"), **labels}, "exp_annotations": says}
        for series, expected in ((fires, [firing]), (fires_not, [])):
            tests.append(
                {
                    "interval": "15s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "alert_rule_test": [{"eval_time": after, "alertname": alert, "exp_alerts": expected}],
                }
            )
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))


@contextmanager
def process(*command: str) -> Iterator[None]:
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait(PATIENCE)


def ask(port: int, query: str) -> list[Any]:
    """What Prometheus answers to a query; nothing while it does not answer."""
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", f"/api/v1/query?query={quote(query)}")
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError):
        return []
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


@pytest.mark.long
def test_prometheus_scrapes_a_daemon_through_the_forwarder(tmp_path: Path) -> None:
    """As the services of docker-compose.yml do; 20 seconds."""
    prometheus = program("prometheus")
    with ExitStack() as stack:
        own = stack.enter_context(start_daemon(arguments=["--metrics", f"unix:///tmp/{tmp_path.name}-metrics"]))
        forwarded, serving = free_port(), free_port()
        forwarder = ("-m", "examples.metrics.forward", "--listen", f"127.0.0.1:{forwarded}")
        stack.enter_context(process(sys.executable, *forwarder, "--to", f"/tmp/{tmp_path.name}-metrics"))
        text = (EXAMPLES / "prometheus.yml").read_text()
        assert "forward:9464" in text
        (tmp_path / "prometheus.yml").write_text(
            text.replace("forward:9464", f"127.0.0.1:{forwarded}").replace("scrape_interval: 5s", "scrape_interval: 1s")
        )
        shutil.copy(ALERTS, tmp_path)
        where = (f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{serving}")
        stack.enter_context(process(prometheus, f"--config.file={tmp_path}/prometheus.yml", *where))
        client = stack.enter_context(own.connect())
        line = pc(client, "vm").line(16)
        for _ in range(50):
            line.raise_()
        deadline = time.monotonic() + PATIENCE
        while [sample["value"][1] for sample in ask(serving, "irqchipd_lines_raised_total")] != ["50"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert [sample["value"][1] for sample in ask(serving, 'up{job="irqchipd"}')] == ["1"]
        for query in queries():
            ask(serving, query)

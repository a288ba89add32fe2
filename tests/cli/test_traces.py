"""The traces' format: the lines that are read, and the lines that are refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from irqchip_client.replay import arm64, arm64_daemon, daemon, in_process
from irqchip_client.replay.arm64_in_process import Arm64Player
from irqchip_client.replay.traces import Mismatch, TraceError, as_expected, load_traces, parse_trace
from irqchip_client.replay.x86 import OPERATIONS


def trace(*ops: Any, **fields: Any) -> str:
    return json.dumps({"family": "pic", "seed": 1, "vcpus": 1, "ops": ops} | fields)


def test_a_trace() -> None:
    parsed = parse_trace(trace(["irq_line", 4, 1, 2], ["take_extint", 0, None], family="x", seed=7, vcpus=3))
    assert (parsed.family, parsed.seed, parsed.vcpus) == ("x", 7, 3)
    assert parsed.operations == (("irq_line", [4, 1], 2), ("take_extint", [0], None))
    assert str(parsed.operations[0]) == '["irq_line",4,1]'


def arm64_trace(*ops: Any, **fields: Any) -> str:
    return trace(*ops, **({"family": "v3-dist", "gic": 3, "vcpus": 0} | fields))


def test_an_arm64_trace() -> None:
    parsed = parse_trace(arm64_trace(["mrs", 1, "IAR1", 1023], ["state", 0, [[1, 0x80, 4, [7, "-EINVAL"]]]]))
    assert (parsed.architecture, parsed.gic, parsed.vcpus) == ("arm64", 3, 0)
    assert parsed.operations == (
        ("mrs", [1, "IAR1"], 1023),
        ("state", [0, [[1, 0x80, 4, 2]]], [[1, 0x80, 4, [7, "-EINVAL"]]]),
    )
    assert parse_trace(trace()).architecture == "x86"


def test_a_mismatch_of_a_state_names_the_attributes() -> None:
    parsed = parse_trace(arm64_trace(["state", 0, [[1, 0x80, 4, [7, 0x10]], [2, 0, 4, [1]]]]))
    mismatch = Mismatch(parsed, 0, [[1, 0x80, 4, [7, 0x11]], [2, 0, 4, ["-EBUSY"]]])
    assert str(mismatch).endswith(
        "\n  differ in group 1 attribute 0x84 (0x11, expected 0x10), group 2 attribute 0x0 (-EBUSY, expected 0x1)"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (arm64_trace(gic=4), "gic must be 2 or 3"),
        (arm64_trace(gic=True), "gic must be 2 or 3"),
        (arm64_trace(vcpus=-1), "vcpus must be a number, 0 to 255"),
        (arm64_trace(["pio_read", 0, 1, 1, 1]), "operation 0: 'pio_read' is unknown; there are new_vm"),
        (arm64_trace(["mrs", 0, "IAR2", 1]), "operation 0: mrs's register must be one of PMR"),
        (arm64_trace(["read", 0, 0, 3, 1]), "operation 0: read's size must be 1, 2, 4 or 8"),
        (arm64_trace(["read", 0, 0, 4]), "operation 0: read takes vcpu, address, size and the answer, not 3 values"),
        (
            arm64_trace(["state", 0, [[1, 2, 3]]]),
            "state takes device, blocks and the answer, not 2 values",
        ),
        (arm64_trace(["check_extension", "us", 1, 1]), "operation 0: check_extension's whose must be"),
        (arm64_trace(["vcpu_init", 0, 4, -2, 0]), "operation 0: vcpu_init's target must be -1 or a number"),
        (arm64_trace(["set_gsi_routing", [[1, "msi", 0, 0]], 0, 0]), "operation 0: set_gsi_routing's table must be"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_malformed_arm64_line_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(TraceError) as error:
        parse_trace(line)
    assert complaint in str(error.value)


def test_every_operation_has_its_executors() -> None:
    assert in_process.executors(in_process.new_vm(1)).keys() == OPERATIONS.keys()
    # Two calls in a daemon, which depend on each other.
    assert daemon.CALLS.keys() | daemon.VM_CALLS.keys() | {"ack_lapic"} == OPERATIONS.keys()
    assert Arm64Player(3).operations.keys() == arm64.OPERATIONS.keys()
    assert arm64_daemon.CALLS.keys() | arm64_daemon.ALONE | {"state"} == arm64.OPERATIONS.keys()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "is not a JSON object"),
        (trace(family=3), "family must be a printable string"),
        (trace(family="\ud800"), "family must be a printable string"),
        (trace(["irq_line", 1, 1, True]), "operation 0: an answer can't be true"),
        (trace(["irq_line", 1, 1, 1.0]), "operation 0: an answer can't be 1.0"),
        (trace(seed="1"), "seed a number"),
        (trace(vcpus=0), "vcpus must be a number, 1 to 255"),
        (trace(vcpus=True), "vcpus must be a number, 1 to 255"),
        (trace(vcpus=256), "vcpus must be a number, 1 to 255"),
        (trace(ops={}), "ops must be a list"),
        (trace("irq_line"), "operation 0: must be a list"),
        (trace([]), "operation 0: must be a list"),
        (trace([["irq_line"], 1]), "operation 0: must be a list"),
        (trace(["take_extint", 0, None], ["irq_lime", 1, 1, 1]), "operation 1: 'irq_lime' is unknown; there are pio_"),
        (trace(["irq_line", 1, 1]), "operation 0: irq_line takes gsi, level and the answer, not 2 values"),
        (trace(["irq_line", 1, 1, 1, 1]), "operation 0: irq_line takes gsi, level and the answer, not 4 values"),
        (trace(["irq_line"]), "operation 0: irq_line takes gsi, level and the answer, not 0 values"),
        (trace(["irq_line", "1", 1, 1]), "operation 0: irq_line's gsi must be a number of 32 bits"),
        (trace(["irq_line", 1, 2, 1]), "operation 0: irq_line's level must be 0 or 1"),
        (trace(["irq_line", 1, True, 1]), "operation 0: irq_line's level must be 0 or 1"),
        (trace(["pio_read", -1, 1, 1, 1]), "operation 0: pio_read's vcpu must be a number of 32 bits"),
        (trace(["mmio_read", 0, 1 << 64, 4, 1]), "operation 0: mmio_read's address must be a number of 64 bits"),
        (trace(["set_irqchip", 0, "0", 0]), "operation 0: set_irqchip's state must be bytes in hexadecimal"),
        (trace(["set_irqchip", 0, "xy", 0]), "operation 0: set_irqchip's state must be bytes in hexadecimal"),
        (trace(["set_irqchip", 0, 7, 0]), "operation 0: set_irqchip's state must be bytes in hexadecimal"),
        (trace(["msr_write", 0, 0x1B, 1 << 64, None]), "operation 0: msr_write's value must be a number of 64 bits"),
        (trace(["get_pit"]), "operation 0: get_pit takes the answer, not 0 values"),
        (trace(["set_gsi_routing", 7, 0]), "operation 0: set_gsi_routing's table must be a list of [gsi,"),
        (trace(["set_gsi_routing", [7], 0]), "operation 0: set_gsi_routing's table must be a list of [gsi,"),
        (trace(["set_gsi_routing", [[1, "chip", 1, 1]], 0]), "operation 0: set_gsi_routing's table must be"),
        (trace(["set_gsi_routing", [[1, [], 1, 1]], 0]), "operation 0: set_gsi_routing's table must be"),
        (trace(["set_gsi_routing", [[1, "irqchip", 1 << 32, 1]], 0]), "operation 0: set_gsi_routing's table must"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_line_is_refused(line: str | bytes, complaint: str) -> None:
    with pytest.raises(TraceError) as error:
        parse_trace(line)
    assert complaint in str(error.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_files_are_read_plain_and_gzipped_whatever_their_name(tmp_path: Path, compress: Any) -> None:
    file = tmp_path / "traces"
    file.write_bytes(compress(f"{trace(seed=1)}\n\n{trace(seed=2)}".encode()))
    assert [trace.seed for trace in load_traces(file)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", ": holds no traces"),
        (b" \n\n", ": holds no traces"),
        (f"{trace()}\n\nnonsense\n".encode(), ":3: is not JSON: "),
        (gzip.compress(f"{trace()}\n".encode() * 1000)[:-20], ": can't be read: "),
        (b"\x1f\x8b\x08" + bytes(30), ": can't be read: "),
        (None, ": can't be read: "),
    ],
    ids=["empty", "blank", "line 3", "cut off", "damaged", "missing"],
)
def test_a_file_that_can_t_be_used(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "traces.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TraceError) as error:
        load_traces(file)
    assert str(error.value).startswith(f"{file}{complaint}")


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        *[(5, 5, True), (5, 6, False), (None, None, True), ("GP", "GP", True), ("GP", None, False)],
        *[("time", 0, True), ("time", 0xFF, True), ("time", None, False), ("time", "-EINVAL", False)],
    ],
)
def test_an_answer_that_depends_on_time_may_be_any_number(expected: Any, actual: Any, same: bool) -> None:
    assert as_expected(expected, actual) is same


def test_a_mismatch_names_everything() -> None:
    found = Mismatch(parse_trace(trace(["take_extint", 0, None], ["pio_read", 0, 32, 1, 5])), 1, "-EINVAL")
    assert str(found).splitlines() == [
        'family pic, seed 1, operation 1: ["pio_read",0,32,1]',
        "  expected 5",
        '  actual   "-EINVAL"',
    ]


@pytest.mark.parametrize(
    ("expected", "actual", "where"),
    [
        ("00ff10", "01ff11", "  differ in byte 0, 2"),
        ({"id": 1, "irr": [1], "x": 0}, {"id": 1, "irr": [2], "y": 0}, "  differ in irr, y, x"),
    ],
)
def test_a_mismatch_of_states_says_where(expected: Any, actual: Any, where: str) -> None:
    found = Mismatch(parse_trace(trace(["get_irqchip", 0, expected])), 0, actual)
    assert str(found).splitlines()[-1] == where


def test_a_mismatch_is_reported_in_bounded_length() -> None:
    found = Mismatch(parse_trace(trace(["set_gsi_routing", [[1, "msi", 1, 1]] * 4096, "0" * 9000])), 0, "1" * 9000)
    assert len(str(found)) < 5000

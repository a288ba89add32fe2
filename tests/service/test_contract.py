"""The contract's comments list what the daemon really does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.errors import STATUS_CODES
from irqchipd.vm.errors import VmError

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "proto" / "irqchip" / "v1"
TEXT = (CONTRACT / "irqchip.proto").read_text()
TABLE = dict(re.findall(r"^// {3}(E[0-9A-Z]+) +([A-Z_]+) ", TEXT, re.MULTILINE))


def test_the_table_of_errors_is_the_daemons() -> None:
    daemons = {VmError(number, "").reason: code.name for number, code in STATUS_CODES.items()}
    assert daemons == TABLE
    assert list(TABLE) == sorted(TABLE)


def raised() -> dict[str, str]:
    """The errnos that the daemon raises in a VmError, directly or through a helper; each with a place in the source."""
    found = {}
    for path in (ROOT / "server").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            function = call.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("VmError", "RefusedError", "_lapic"):
                for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                    if isinstance(argument, ast.Attribute) and getattr(argument.value, "id", "") == "errno":
                        found[argument.attr] = f"{path.relative_to(ROOT)}:{call.lineno}"
    return found


def test_every_errno_that_the_daemon_raises_is_in_the_table() -> None:
    places = raised()
    assert {"EINVAL", "ENXIO", "EIO", "EBADF"} <= places.keys()
    assert {name: place for name, place in places.items() if name not in TABLE} == {}


def test_every_reason_of_the_table_is_raised_somewhere() -> None:
    assert TABLE.keys() <= raised().keys()


def test_the_contract_names_every_file_and_imports_it() -> None:
    others = {path.name for path in CONTRACT.glob("*.proto")} - {"irqchip.proto"}
    assert set(re.findall(r"^// {3}(\w+\.proto) ", TEXT, re.MULTILINE)) == others
    assert set(re.findall(r'^import public "irqchip/v1/(\w+\.proto)";$', TEXT, re.MULTILINE)) == others


def test_one_module_has_every_message() -> None:
    for path in CONTRACT.glob("*.proto"):
        for name in re.findall(r"^(?:message|enum) (\w+) ", path.read_text(), re.MULTILINE):
            assert hasattr(pb, name), f"{name} of {path.name}"


def test_an_operation_and_its_result_have_one_number() -> None:
    operations = {field.name: field.number for field in pb.Operation.DESCRIPTOR.fields}
    results = {field.name: field.number for field in pb.OperationResult.DESCRIPTOR.fields}
    assert results == {"error": 1, **operations}


def test_only_requests_of_rpcs_name_a_vm() -> None:
    methods = {method.input_type.name for method in pb.DESCRIPTOR.services_by_name["IrqchipService"].methods}
    requests = [field.message_type for field in pb.Operation.DESCRIPTOR.fields]
    assert {request.name for request in requests if request and "vm" not in request.fields_by_name} == {
        request.name for request in requests if request and request.name not in methods
    }

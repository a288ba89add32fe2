"""Generate the stubs beside the contract's files in proto/irqchip/v1, or with --check prove that they are current."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
CONTRACT = PROTO / "irqchip" / "v1"
SERVICE = CONTRACT / "irqchip.proto"  # the only file with a service


def generate(directory: Path) -> None:
    """Write the contract's stubs into a directory."""
    _protoc(directory, ["python", "mypy"], sorted(CONTRACT.glob("*.proto")))
    _protoc(directory, ["grpc_python", "mypy_grpc"], [SERVICE])


def _protoc(directory: Path, kinds: list[str], sources: list[Path]) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            *(f"--plugin={plugin}={scripts / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *(f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{directory}" for kind in kinds),
            *map(str, sources),
        ]
    )
    if status:
        sys.exit(status)


def outdated() -> list[str]:
    """The stubs that differ from those the contract generates."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh = {path.name: path.read_bytes() for path in (Path(directory) / "irqchip" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in CONTRACT.glob("*_pb2*")}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if names := outdated():
            sys.exit(f"out of date: {', '.join(names)}; run `make proto`")
    else:
        generate(PROTO)

"""Generate the stubs beside proto/irqchip/v1/irqchip.proto, or with --check prove that they are current."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SOURCE = PROTO / "irqchip" / "v1" / "irqchip.proto"


def generate(directory: Path) -> None:
    """Write the stubs of SOURCE below a directory."""
    scripts = Path(sysconfig.get_path("scripts"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            *(f"--plugin={plugin}={scripts / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *(f"--{kind}_out={directory}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            str(SOURCE),
        ]
    )
    if status:
        sys.exit(status)


def outdated() -> list[str]:
    """The stubs that are not what the contract generates."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh = {path.name: path.read_bytes() for path in (Path(directory) / "irqchip" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in SOURCE.parent.glob("irqchip_pb2*")}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if names := outdated():
            sys.exit(f"not what the contract generates: {', '.join(names)}; run `make proto`")
    else:
        generate(PROTO)

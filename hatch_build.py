"""Compiles the daemon's core with mypyc for a wheel; docs/decisions.md says why.

The wheel has the sources, too. Nothing is compiled with IRQCHIPD_PURE=1, without a C compiler and Python's headers,
and for an editable install.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Interpreted code can derive a class from a compiled one only where mypyc_attr allows that, and can't make a weak
# reference to an object of a compiled class.
COMPILED = (
    "client/irqchip_client/_call.py",
    "client/irqchip_client/_embedded/transport.py",
    "client/irqchip_client/_session.py",
    "client/irqchip_client/_sync/packets.py",
    "client/irqchip_client/_sync/port.py",
    "client/irqchip_client/_sync/ring.py",
    "client/irqchip_client/_sync/transport.py",
    "client/irqchip_client/replay/in_process.py",
    "client/irqchip_client/replay/traces.py",
    "proto/irqchip/lapic_page.py",
    "proto/irqchip/port.py",
    "proto/irqchip/ring.py",
    "server/irqchipd/chips/[a-z]*.py",
    "server/irqchipd/chips/gic/[a-z]*.py",
    "server/irqchipd/chips/s390/[a-z]*.py",
    "server/irqchipd/vm/[a-z]*.py",
    "server/irqchipd/vm/arm64/[a-z]*.py",
    "server/irqchipd/vm/s390/[a-z]*.py",
    "server/irqchipd/vm/x86/[a-z]*.py",
    "server/irqchipd/observe/[a-z]*.py",
    "server/irqchipd/fair.py",
    "server/irqchipd/limits.py",
    "server/irqchipd/timers.py",
    "server/irqchipd/edge/batch.py",
    "server/irqchipd/edge/connection.py",
    "server/irqchipd/edge/convert.py",
    "server/irqchipd/edge/errors.py",
    "server/irqchipd/edge/eventfd_watcher.py",
    "server/irqchipd/edge/eventfds.py",
    "server/irqchipd/edge/events.py",
    "server/irqchipd/edge/halts.py",
    "server/irqchipd/edge/host.py",
    "server/irqchipd/edge/lapic_page.py",
    "server/irqchipd/edge/messages.py",
    "server/irqchipd/edge/operations.py",
    "server/irqchipd/edge/port.py",
    "server/irqchipd/edge/process.py",
    "server/irqchipd/edge/records.py",
    "server/irqchipd/edge/ring.py",
    "server/irqchipd/edge/session.py",
    "server/irqchipd/edge/trace.py",
    "server/irqchipd/edge/trace_codec.py",
    "server/irqchipd/edge/trace_filter.py",
    "server/irqchipd/edge/trace_ring.py",
    "server/irqchipd/edge/work.py",
)
# What the compiler needs; mypyc believes the types that mypy infers, so its version is the one that checks them.
NEEDS = ["mypy[mypyc]==2.4.1", "types-grpcio==1.85.0.20261028", "types-protobuf==7.35.1.20260906"]


class Compile(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled modules to a wheel."""

    def dependencies(self) -> list[str]:
        return NEEDS if _can_compile() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        if not _can_compile():
            self.app.display_warning("irqchipd is not compiled: IRQCHIPD_PURE=1, or no C compiler or Python.h is there")
            return
        self._folder = tempfile.mkdtemp(prefix="irqchipd-")
        for path in _compile(Path(self.root), Path(self._folder)):
            build_data["force_include"][str(path)] = str(path.relative_to(Path(self._folder, "lib")))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if build_data["infer_tag"]:
            shutil.rmtree(self._folder)


def _can_compile() -> bool:
    if os.environ.get("IRQCHIPD_PURE", "") not in ("", "0"):
        return False
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def _compile(root: Path, folder: Path) -> list[Path]:
    """Compile the modules, and return the files that make them up, below folder/lib as below site-packages."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    class ParallelBuild(build_ext):  # type: ignore[misc]
        def build_extensions(self) -> None:
            compile_one = self.compiler.compile

            def compile_all(sources: list[str], **how: Any) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    made = pool.map(lambda source: compile_one([source], **how), sources)
                    return list(chain.from_iterable(made))

            self.compiler.compile = compile_all
            super().build_extensions()

    os.chdir(root)
    modules = sorted(str(path.relative_to(root)) for pattern in COMPILED for path in root.glob(pattern))
    extensions = mypycify(
        # `make check` reports errors. Here the other modules may have some: their libraries are not installed.
        [
            "--config-file",
            "pyproject.toml",
            "--follow-imports",
            "silent",
            "--cache-dir",
            str(folder / "mypy"),
            *modules,
        ],
        opt_level="2",
        debug_level="0",
        multi_file=True,
        target_dir=str(folder / "c"),
        group_name="irqchipd",
    )
    build = ParallelBuild(Distribution({"name": "irqchipd", "ext_modules": extensions}))
    build.build_lib, build.build_temp = str(folder / "lib"), str(folder / "objects")
    build.finalize_options()
    build.run()
    return [path for path in (folder / "lib").rglob("*") if path.is_file()]

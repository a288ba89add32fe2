"""A substitute for the Python image that the Dockerfile builds on, for machines that cannot reach a registry.

It consists of this machine's files: the interpreter that runs the tests, its standard library and pip, a shell, and
their shared libraries. It also has what `pip install` needs to reach an index: the certificates that this machine
trusts, and the addresses in its pip configuration. It is built anew every time, in two seconds.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.compose.engine import Engine, NoEngineError
from tests.this_machine import MissingError, copy, copy_program, copy_python, find, output

REAL_IMAGE = "python:3.12-slim"
STAND_IN = "irqchipd-tests/python"
PROGRAMS = ("sh", "cat", "chmod", "chown", "cp", "env", "id", "ln", "ls", "mkdir", "mv", "rm", "sleep", "touch")
# Libraries that wheels with compiled code may rely on.
LIBRARIES = ("libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1", "libstdc++.so.6")
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
# The options of pip's configuration for reaching an index.
PIP_OPTIONS = {"index-url", "extra-index-url", "trusted-host", "proxy", "retries", "timeout", "default-timeout"}


def provide_base_image(engine: Engine) -> str:
    """The name of a Python image in the engine: the real one from its registry, or else a substitute.

    Raises NoEngineError if this machine lacks a file that the substitute needs.
    """
    if _registry_is_near() and _pull(engine):
        return REAL_IMAGE
    root = engine.folder / "python"
    root.mkdir()
    try:
        path = _fill(root)
    except MissingError as error:
        raise NoEngineError(f"no image of Python can be pulled, and none be made {error} here") from None
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        command = ["docker", "import", "--change", f"ENV PATH={path}", "-", STAND_IN]
        subprocess.run(command, env=engine.environment, stdin=archive.stdout, capture_output=True, check=True)
    return STAND_IN


def _registry_is_near() -> bool:
    try:
        socket.create_connection(("registry-1.docker.io", 443), timeout=2).close()
    except OSError:
        return False
    return True


def _pull(engine: Engine) -> bool:
    try:
        command = ["docker", "pull", "--quiet", REAL_IMAGE]
        done = subprocess.run(command, env=engine.environment, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _fill(root: Path) -> str:
    """Build the substitute's root file system in a folder; returns its PATH."""
    python = copy_python(root)
    _copy_pip(root, Path(output(str(python), "-I", "-c", "import site; print(site.getsitepackages()[0])").strip()))
    for folder in ("/bin", "/sbin"):
        copy(root, Path(folder))  # /bin/sh may be /usr/bin/sh
    for name in PROGRAMS:
        copy_program(root, Path(find(name)))
    _copy_libraries(root)
    _write_configuration(root)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)  # root's home may be unreadable
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    return f"{python.parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _copy_pip(root: Path, to: Path) -> None:
    """The pip of the tests' environment, as one of the interpreter's own packages."""
    try:
        files = distribution("pip").files or []
    except PackageNotFoundError:
        raise NoEngineError("no image of Python can be pulled, and none be made without pip here") from None
    for file in files:
        if file.suffix != ".pyc" and file.parts[0] != "..":
            there = root / to.relative_to("/") / file
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), there)


def _copy_libraries(root: Path) -> None:
    known = dict(re.findall(r"^\s+(\S+) \(libc6,x86-64.*\) => (\S+)$", output(find("ldconfig"), "-p"), re.MULTILINE))
    for name in LIBRARIES:
        if name in known:
            copy_program(root, Path(known[name]))
    copy(root, Path("/etc/ld.so.cache"))


def _write_configuration(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    pip = {}
    # Its own lines are section.option='value'; those of the environment are :env:.option='value' and come first.
    for line in reversed(output(sys.executable, "-m", "pip", "config", "list").splitlines()):
        name, _, value = line.partition("=")
        pip[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    bundle = pip.get("cert") or os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    options = {name: value for name, value in pip.items() if name in PIP_OPTIONS and "file:" not in value}
    if bundle:
        (root / CERTIFICATES).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle, root / CERTIFICATES)
        options["cert"] = f"/{CERTIFICATES}"
    lines = (f"{name} = {value}\n" for name, value in options.items())
    (root / "etc/pip.conf").write_text("[global]\n" + "".join(lines))

"""A stand-in for the Python image that the Dockerfile builds on, for where no registry can be reached.

It is made of this machine's files: the interpreter that runs the tests, its standard library and pip, a shell, and the
shared libraries of these. It also has what `pip install` needs to reach an index from here: the certificates that this
machine trusts, and the addresses in its pip configuration. It is made anew every time, in two seconds.
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
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.compose.engine import Engine, NoEngineError

REAL_IMAGE = "python:3.12-slim"
STAND_IN = "irqchipd-tests/python"
PROGRAMS = ("sh", "cat", "chmod", "chown", "cp", "env", "id", "ln", "ls", "mkdir", "mv", "rm", "sleep", "touch")
# What wheels of compiled code may take for granted.
LIBRARIES = ("libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1", "libstdc++.so.6")
# Of the standard library: what has another's packages, what is for building Python, and what is large and not needed.
LEFT_OUT = re.compile(r"(site|dist)-packages|config-.*|ensurepip|idlelib|lib2to3|test|tests|tkinter|turtledemo")
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
# Of pip's configuration, what is about reaching an index.
PIP_OPTIONS = {"index-url", "extra-index-url", "trusted-host", "proxy", "retries", "timeout", "default-timeout"}


def provide_base_image(engine: Engine) -> str:
    """The name of a Python image that the engine has: the real one from its registry, or else a stand-in.

    Raises NoEngineError where this machine lacks something that the stand-in is made of.
    """
    if _registry_is_near() and _pull(engine):
        return REAL_IMAGE
    root = engine.folder / "python"
    root.mkdir()
    path = _fill(root)
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
    """Make the stand-in's root file system in a folder, and return its PATH."""
    # The same places as here, so that the interpreter finds its own.
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    _copy_program(root, python)
    (root / python.relative_to("/")).with_name("python3").symlink_to(python.name)
    for scheme_path in ("stdlib", "platstdlib"):
        at = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        _copy_package(root, Path(sysconfig.get_path(scheme_path, "posix_prefix", at)))
    _copy_pip(root, Path(_output(str(python), "-I", "-c", "import site; print(site.getsitepackages()[0])").strip()))
    for folder in ("/bin", "/sbin"):
        _copy(root, Path(folder))  # /bin/sh may be /usr/bin/sh
    for name in PROGRAMS:
        _copy_program(root, Path(_find(name)))
    _copy_libraries(root)
    _write_configuration(root)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)  # root's home, say, may be closed here
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    return f"{python.parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _copy(root: Path, path: Path) -> None:
    """A file or link of this machine's, with the links that lead to it."""
    for here in (*reversed(path.parents), path):
        there = root / here.relative_to("/")
        if here.is_symlink():
            if not there.is_symlink():
                there.symlink_to(os.readlink(here))
            # What the link says may lead over links, too.
            _copy(root, Path(os.path.normpath(here.parent / os.readlink(here))) / path.relative_to(here))
            return
        if here.is_dir():
            there.mkdir(exist_ok=True)
        elif not there.exists():
            shutil.copy2(here, there)


def _copy_program(root: Path, path: Path) -> None:
    """A program or a shared library, and the libraries that it needs."""
    _copy(root, path)
    for library in re.findall(r"(/\S+) \(0x", _output("ldd", str(path))):
        _copy(root, Path(library))


def _copy_package(root: Path, folder: Path) -> None:
    """A folder of Python, with the libraries that its extensions need."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not LEFT_OUT.fullmatch(name)]
        for path in (Path(where, name) for name in files):
            if ".so" in path.suffixes:
                _copy_program(root, path)
            elif path.suffix != ".pyc" or path.name.endswith(f".{sys.implementation.cache_tag}.pyc"):
                _copy(root, path)


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
    known = dict(re.findall(r"^\s+(\S+) \(libc6,x86-64.*\) => (\S+)$", _output(_find("ldconfig"), "-p"), re.MULTILINE))
    for name in LIBRARIES:
        if name in known:
            _copy_program(root, Path(known[name]))
    _copy(root, Path("/etc/ld.so.cache"))


def _write_configuration(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    pip = {}
    # Its own lines come as section.option='value', the environment's as :env:.option='value' and before the others.
    for line in reversed(_output(sys.executable, "-m", "pip", "config", "list").splitlines()):
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


def _find(program: str) -> str:
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise NoEngineError(f"no image of Python can be pulled, and none be made without {program} here")
    return path


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout

"""Debian's Linux kernels and other packages, for machines that tests boot. Downloaded by apt-get, without root."""

from __future__ import annotations

import fcntl
import lzma
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.this_machine import MissingError, find, output

DOWNLOAD_SECONDS = 120.0


def fetch_kernel(cache: Path, architecture: str, series: str = "") -> Path:
    """The newest kernel for clouds, of a series such as "6.12" if given, unpacked into the cache folder.

    MissingError if it cannot be downloaded.
    """
    name = f"kernel-{architecture}" if architecture != _own_architecture() else "kernel"
    with _alone(cache):
        unpacked = cache / name
        return unpacked if unpacked.is_dir() else _fetch_kernel(cache, architecture, series, name)


def _fetch_kernel(cache: Path, architecture: str, series: str, name: str) -> Path:
    options = _options(cache, architecture)
    if options:
        _run(cache, "the lists of Debian's packages", find("apt-get"), *options, "--quiet", "update")
    suffix = f"-cloud-{architecture}"
    pattern = f"^linux-image-{re.escape(series) or '[0-9]'}[0-9.]*[^ ]*{suffix}$"
    names = [package for package in _named(pattern, options) if len(_version(package, suffix)) > 2]  # no metapackages
    if not names:
        wanted = f"Linux {series}" if series else "Debian's kernel"
        raise MissingError(f"without a package of {wanted} for {architecture} clouds (apt-get update?)")
    newest = max(names, key=lambda package: _version(package, suffix))
    return _fetch(cache, newest, name, options)


def fetch_package(cache: Path, pattern: str) -> Path:
    """The newest package whose name matches a pattern, for this machine, unpacked into the cache folder.

    MissingError if it cannot be downloaded.
    """
    names = _named(pattern, [])
    if not names:
        raise MissingError(f"without a package {pattern} (apt-get update?)")
    newest = max(names, key=lambda package: _version(package, ""))
    with _alone(cache):
        unpacked = cache / newest
        return unpacked if unpacked.is_dir() else _fetch(cache, newest, newest, [])


def _named(pattern: str, options: list[str]) -> list[str]:
    """The packages whose names match a pattern."""
    found = output(find("apt-cache"), *options, "search", "--names-only", pattern)
    return [line.split()[0] for line in found.splitlines()]


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Excludes other processes that test, and fetch into this cache folder."""
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path, package: str, name: str, options: list[str]) -> Path:
    """Downloads a package, and unpacks it into a folder of the cache."""
    _run(cache, package, find("apt-get"), *options, "--quiet", "download", package)
    (archive,) = cache.glob(f"{package}_*.deb")
    half_done = cache / f"{name}-unpacking"
    subprocess.run([find("dpkg-deb"), "-x", str(archive), str(half_done)], check=True)
    archive.unlink()
    return half_done.rename(cache / name)


def kernel_image(kernel: Path) -> Path:
    """What QEMU boots."""
    (image,) = kernel.glob("boot/vmlinuz-*")
    return image


def modules(kernel: Path, name: str) -> Iterator[bytes]:
    """A module of a kernel, after all modules that it depends on."""
    seen: set[str] = set()

    def load(name: str) -> Iterator[bytes]:
        if name in seen:
            return
        seen.add(name)
        (path,) = (
            path
            for path in kernel.glob("lib/modules/*/kernel/**/*.ko*")
            if path.name.partition(".")[0].replace("-", "_") == name
        )
        image = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", image)
        for other in depends[1].decode().split(",") if depends else ():
            if other:
                yield from load(other.replace("-", "_"))
        yield image

    return load(name.replace("-", "_"))


def _own_architecture() -> str:
    return output(find("dpkg"), "--print-architecture").strip()


def _options(cache: Path, architecture: str) -> list[str]:
    """For another architecture than this machine's, apt gets lists of its own: this machine's stay as they are."""
    if architecture == _own_architecture():
        return []
    lists = cache / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::State::Lists": str(lists),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    return [f"-o{name}={value}" for name, value in options.items()]


def _run(cache: Path, what: str, *command: str) -> None:
    try:
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MissingError(f"without {what}, which apt-get could not download in time") from None
    if done.returncode:
        raise MissingError(f"without {what}: {' '.join(command[-2:])}: {done.stderr.strip()}")


def _version(package: str, suffix: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", package.removesuffix(suffix))]

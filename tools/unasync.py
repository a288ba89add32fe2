"""Make the blocking half of the SDK from the asyncio half, or with --check prove that it is current.

Two comments in the source direct this script: `# sync: TEXT` replaces its line by TEXT, or inserts TEXT if the
comment has a line of its own; `# only async` drops its line.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "client" / "irqchip_client"
MODULES = ("client", "machine", "session")  # in the other modules the two halves do I/O differently
NOTICE = "# Made from _asyncio/{name}.py by tools/unasync.py. Edit the original, then run `make proto`.\n"

# Phrases of docstrings first.
SUBSTITUTIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r", for the event loop it was made in\.", ". Any number of threads may use it."),
        (r"(, and opened by|, with) `async with` or `await`", ""),
        (r"within its `async with`, or after `await`,", "after this returns"),
        (r"the task's cancellation", "Ctrl-C"),
        (
            r"Cancelling the future gives up a halt at the batch's end\.",
            "The future's callbacks run on the thread that reads the Session: they may submit, which then raises\n"
            "        LimitReached rather than wait, and must not wait for an answer.",
        ),
        (r"`async with await ", "`with "),
        (r"\b(an?other|any|which(?:ever)?) task\b", r"\1 thread"),
        (r"Any number of tasks", "Any number of threads"),
        (r"\basync (def|with|for)\b", r"\1"),
        (r"`async with", "`with"),
        (r"\bawait ", ""),
        (r"\bAsync(Iterator)\b", r"\1"),
        (r"__a(enter|exit|iter|next)__", r"__\1__"),
        (r"\bStopAsyncIteration\b", "StopIteration"),
    )
]


def blocking(source: str) -> str:
    """The blocking counterpart of a module's source, before formatting."""
    lines = []
    for line in source.splitlines():
        _, directive, text = line.partition("# sync: ")
        if directive:
            lines.append(line[: len(line) - len(line.lstrip())] + text)
        elif not line.endswith("# only async"):
            for pattern, replacement in SUBSTITUTIONS:
                line = pattern.sub(replacement, line)
            lines.append(line)
    return "\n".join(lines) + "\n"


def formatted(source: str, path: Path) -> str:
    """The source after the formatter."""
    ruff = [str(Path(sysconfig.get_path("scripts")) / "ruff")]
    for arguments in (["check", "--quiet", "--select=I,F401", "--fix"], ["format"]):
        command = [*ruff, *arguments, f"--stdin-filename={path}", "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


def made() -> dict[Path, str]:
    """The modules of _sync, and the new source of each."""
    fresh = {}
    for name in MODULES:
        path = CLIENT / "_sync" / f"{name}.py"
        source = (CLIENT / "_asyncio" / f"{name}.py").read_text()
        fresh[path] = formatted(NOTICE.format(name=name) + blocking(source), path)
    return fresh


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if names := [path.name for path, text in made().items() if path.read_text() != text]:
            sys.exit(f"_sync is out of date: {', '.join(names)}; run `make proto`")
    else:
        for path, text in made().items():
            path.write_text(text)

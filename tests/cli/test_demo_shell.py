"""`make demo-shell`: the commands it prints can be copied, and it reports a device that has died."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


def test_it_says_how_to_look_and_what_has_died() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "examples.demo.shell", "--cpu", "unicorn"])
    said = ""

    def hear(pattern: str) -> str:
        nonlocal said
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, said, re.DOTALL)) is None:
            assert select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0], said
            said += os.read(terminal, 4096).decode()
        said = said[found.end() :]
        return found[1]

    regs = hear(r"\n    (\S+ -m irqchip_client.cli [^\r\n]*regs demo)\r")
    hear(r"(\n> )")
    shown = subprocess.run(regs, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "ioapic0: " in shown.stdout
    children = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    (disk,) = [pid for pid in children if b"examples.disk" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(disk), signal.SIGKILL)
    again = hear(r"disk was killed by signal 9; in another terminal, this starts it again:\r\n  ([^\r]*) \]")
    with subprocess.Popen(again, shell=True, stderr=subprocess.PIPE, text=True, start_new_session=True) as disk_again:
        assert disk_again.stderr is not None
        assert "block device" in disk_again.stderr.readline()
        os.write(terminal, b"\x1d")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.killpg(disk_again.pid, signal.SIGTERM)
    os.close(terminal)

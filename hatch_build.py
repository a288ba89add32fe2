"""Compiles the daemon's core with mypyc for a wheel; see docs/decisions.md.

The sources are in the wheel, too. With IRQCHIPD_PURE=1, without a C compiler, and for an editable install, nothing is
compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = (
    "proto/irqchip/port.py",
    "server/irqchipd/chips/[a-z]*.py",
    "server/irqchipd/vm/[a-z]*.py",
    "server/irqchipd/fair.py",
    "server/irqchipd/limits.py",
    "server/irqchipd/timers.py",
    "server/irqchipd/edge/batch.py",
    "server/irqchipd/edge/connection.py",
    "server/irqchipd/edge/convert.py",
    "server/irqchipd/edge/errors.py",
    "server/irqchipd/edge/eventfds.py",
    "server/irqchipd/edge/events.py",
    "server/irqchipd/edge/halts.py",
    "server/irqchipd/edge/messages.py",
    "server/irqchipd/edge/operations.py",
    "server/irqchipd/edge/port.py",
    "server/irqchipd/edge/records.py",
    "server/irqchipd/edge/session.py",
    "server/irqchipd/edge/work.py",
)

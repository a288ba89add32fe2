"""A VM's counts of interrupts and their times, as in `irqchipctl interrupts`, for the page."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from irqchipd.observe.histogram import Histogram
from irqchipd.observe.latency import Kind
from irqchipd.vm.machine import Vm


def counts(vm: Vm) -> bytes:
    """The counts as JSON. The first request starts the counting."""
    counted = vm.interrupts()
    listed = [
        {
            "kind": Kind(one.kind).name,
            "gsi": one.gsi,
            "number": one.number,
            "level": one.level,
            "clients": one.sources,
            "counts": [one.counts.get(vcpu, 0) for vcpu in counted.vcpus],
            "accept": _times(one.accept),
            "eoi": _times(one.eoi),
        }
        for one in counted.interrupts
    ]
    return json.dumps({"vcpus": counted.vcpus, "interrupts": listed}).encode()


def _times(histogram: Histogram) -> Any:
    """The count, the mean, and the 99th percentile, rounded up to a power of two."""
    count = sum(histogram.buckets)
    if not count:
        return None
    running = accumulate(histogram.buckets)
    most = next(bucket for bucket, reached in enumerate(running) if reached >= count - count // 100)
    return {"count": count, "mean": histogram.sum / count, "most": 1 << most}

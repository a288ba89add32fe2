"""The fields of a log record: what it is about.

`log.info("VM made", extra=fields(vm="vm1"))` is the line "... INFO irqchipd.vm.registry: VM made vm=vm1", or an object
of JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

_FIELDS: Final = "fields"


def fields(**values: object) -> Mapping[str, object]:
    """A record's `extra`: a VM, a Session, a client. None stands for a field that the record does not have."""
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields that a record was made with."""
    found: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return found

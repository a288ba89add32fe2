"""Lists that the daemon gives in pages, assembled without I/O.

Each function is a generator. It yields a call and the name of a VM, and receives the response, or the error. It returns
the list. An older daemon gives everything in one page.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from irqchip.v1 import irqchip_pb2 as pb

from . import _calls
from ._call import Call
from ._errors import NotFound, protocol_error
from ._model import VmInfo

T = TypeVar("T")
Steps = Generator[tuple[Call[Any], str], Any, T]

_MOST_PAGES = 10_000  # Per list: far more than a daemon's limits allow.


def every_vm() -> Steps[list[VmInfo]]:
    """All VMs, each with all of its Sessions, ordered by name."""
    vms: dict[str, VmInfo] = {}
    tokens = _Tokens()
    for token in tokens:
        page: pb.ListVmsResponse = yield _calls.list_vms(token), ""
        for message in page.vms:
            if len(message.sessions) >= message.session_count:
                vms[message.name] = VmInfo.from_proto(message)
                continue
            try:
                vms[message.name] = yield from whole_vm(message.name)
            except NotFound:  # Deleted in the meantime.
                vms.pop(message.name, None)
        tokens.next = page.next_page_token
    return list(vms.values())


def whole_vm(name: str) -> Steps[VmInfo]:
    """A VM, with all of its Sessions. A Session that opens or ends while the pages come may be missing."""
    whole: pb.VmInfo | None = None
    sources: set[int] = set()
    tokens = _Tokens()
    for token in tokens:
        page: pb.GetVmResponse = yield _calls.get_vm(token), name
        if whole is None:
            whole = page.vm
            sources.update(session.source for session in whole.sessions)
        else:
            new = [session for session in page.vm.sessions if session.source not in sources]
            sources.update(session.source for session in new)
            whole.sessions.extend(new)
        tokens.next = page.next_page_token
    assert whole is not None
    return VmInfo.from_proto(whole)


class _Tokens:
    """The tokens of the pages. Each is requested once: a list that does not end is an error."""

    def __init__(self) -> None:
        self.next = ""  # From the last page.

    def __iter__(self) -> Iterator[str]:
        asked: set[str] = set()
        while True:
            asked.add(self.next)
            yield self.next
            if not self.next:
                return
            if self.next in asked:
                raise protocol_error("the same page of a list twice")
            if len(asked) == _MOST_PAGES:
                raise protocol_error(f"a list of more than {_MOST_PAGES:,} pages")

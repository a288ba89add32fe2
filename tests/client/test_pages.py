"""vms() and info() combine the daemon's pages, and end whatever the daemon answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import irqchip_client as irqchip
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, VmInfo, _pages, aio, connect

from .conftest import Stub

Ask = Callable[[str], list[VmInfo]]


class Paging:
    """A daemon with two VMs or two Sessions per page."""

    def __init__(self, **sessions: int) -> None:
        self.sessions = sessions  # The number of Sessions per VM.
        self.gone: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def list_vms(self, request: pb.ListVmsRequest, _context: Any) -> pb.ListVmsResponse:
        self.asked.append(("", request.page_token))
        names = sorted(name for name in self.sessions if name > request.page_token)
        vms = [self._info(name, 0) for name in names[:2]]
        return pb.ListVmsResponse(vms=vms, next_page_token=names[1] if names[2:] else "")

    def get_vm(self, request: pb.GetVmRequest, context: grpc.ServicerContext) -> pb.GetVmResponse:
        self.asked.append((request.vm, request.page_token))
        if request.vm in self.gone:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such VM")
        begin = int(request.page_token or 0)
        more = self.sessions[request.vm] > begin + 2
        return pb.GetVmResponse(vm=self._info(request.vm, begin), next_page_token=str(begin + 2) if more else "")

    def _info(self, name: str, begin: int) -> pb.VmInfo:
        count = self.sessions[name]
        page = [pb.SessionInfo(client="c", source=source + 1) for source in range(begin, min(begin + 2, count))]
        return pb.VmInfo(name=name, sessions=page, session_count=count, tsc_khz=1, lateness_ns=7)


def by_threads(target: str) -> list[VmInfo]:
    with connect(target) as client:
        return client.vms()


def by_the_event_loop(target: str) -> list[VmInfo]:
    async def main() -> list[VmInfo]:
        async with aio.connect(target) as client:
            return await client.vms()

    return asyncio.run(main())


@pytest.fixture(params=[by_threads, by_the_event_loop])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


def sources(info: VmInfo) -> list[int]:
    return [session.source for session in info.sessions]


def test_all_pages_make_one_list_and_each_vm_has_all_of_its_sessions(stub: Stub, ask: Ask) -> None:
    paging = Paging(a=0, b=5, c=2, d=3, e=1)
    vms = ask(stub(ListVms=paging.list_vms, GetVm=paging.get_vm))
    assert [(info.name, sources(info)) for info in vms] == [
        ("a", []),
        ("b", [1, 2, 3, 4, 5]),
        ("c", [1, 2]),
        ("d", [1, 2, 3]),
        ("e", [1]),
    ]
    assert paging.asked == [
        *[("", ""), ("b", ""), ("b", "2"), ("b", "4")],
        *[("", "b"), ("d", ""), ("d", "2")],
        ("", "d"),
    ]


def test_a_vm_that_goes_while_it_is_listed_is_left_out(stub: Stub, ask: Ask) -> None:
    paging = Paging(a=1, b=5, c=1)
    paging.gone.add("b")
    vms = ask(stub(ListVms=paging.list_vms, GetVm=paging.get_vm))
    assert [info.name for info in vms] == ["a", "c"]


def test_another_failure_is_raised(stub: Stub, ask: Ask) -> None:
    def refuse(_request: pb.GetVmRequest, context: grpc.ServicerContext) -> pb.GetVmResponse:
        context.abort(grpc.StatusCode.INTERNAL, "a defect")
        raise AssertionError

    with pytest.raises(irqchip.IrqchipError, match="a defect"):
        ask(stub(ListVms=Paging(a=5).list_vms, GetVm=refuse))


def test_info_has_all_sessions_and_the_lateness(stub: Stub) -> None:
    paging = Paging(a=5)
    target = stub(GetVm=paging.get_vm)
    with connect(target) as client:
        info = client.vm("a").info()

    async def main() -> VmInfo:
        async with aio.connect(target) as client:
            return await client.vm("a").info()

    assert info == asyncio.run(main())
    assert sources(info) == [1, 2, 3, 4, 5]
    assert info.lateness_ns == 7


def test_info_of_a_vm_that_is_gone(stub: Stub) -> None:
    paging = Paging(a=5)
    paging.gone.add("a")
    with connect(stub(GetVm=paging.get_vm)) as client, pytest.raises(irqchip.NotFound):
        client.vm("a").info()


def test_a_session_on_two_pages_is_listed_once(stub: Stub) -> None:
    def get_vm(request: pb.GetVmRequest, _context: Any) -> pb.GetVmResponse:
        first = 2 if request.page_token else 1
        page = [pb.SessionInfo(source=source) for source in (first, first + 1)]
        return pb.GetVmResponse(
            vm=pb.VmInfo(name="a", sessions=page), next_page_token="" if request.page_token else "more"
        )

    with connect(stub(GetVm=get_vm)) as client:
        assert sources(client.vm("a").info()) == [1, 2, 3]


def test_a_list_that_repeats_itself_is_an_error(stub: Stub, ask: Ask) -> None:
    def list_vms(_request: pb.ListVmsRequest, _context: Any) -> pb.ListVmsResponse:
        return pb.ListVmsResponse(vms=[pb.VmInfo(name="a")], next_page_token="again")

    def get_vm(request: pb.GetVmRequest, _context: Any) -> pb.GetVmResponse:
        token = {"": "one", "one": "two", "two": "one"}[request.page_token]
        return pb.GetVmResponse(vm=pb.VmInfo(name="a"), next_page_token=token)

    target = stub(ListVms=list_vms, GetVm=get_vm)
    with pytest.raises(irqchip.IrqchipError, match="the same page of a list twice") as caught:
        ask(target)
    assert caught.value.reason == "EPROTO"
    with connect(target) as client, pytest.raises(irqchip.IrqchipError, match="the same page of a list twice"):
        client.vm("a").info()


def test_a_list_without_an_end_is_an_error(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_vms(request: pb.ListVmsRequest, _context: Any) -> pb.ListVmsResponse:
        return pb.ListVmsResponse(next_page_token=f"{request.page_token}1")

    monkeypatch.setattr(_pages, "_MOST_PAGES", 5)
    with connect(stub(ListVms=list_vms)) as client, pytest.raises(irqchip.IrqchipError, match="more than 5 pages"):
        client.vms()


def test_a_daemon_without_pages_is_asked_once(stub: Stub) -> None:
    asked = []

    def list_vms(request: pb.ListVmsRequest, _context: Any) -> pb.ListVmsResponse:
        asked.append(request)
        return pb.ListVmsResponse(vms=[pb.VmInfo(name="a", sessions=[pb.SessionInfo(source=1)])])

    with connect(stub(ListVms=list_vms)) as client:
        (info,) = client.vms()
    assert sources(info) == [1]
    assert len(asked) == 1


def test_vms_and_info_against_the_daemon(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    sessions = [vm.session(f"client {number}") for number in range(20)]
    try:
        info = vm.info()
        assert [session.source for session in sessions] == sources(info)
        assert [listed for listed in irqchip_client.vms() if listed.name == vm.name] == [info]
    finally:
        for session in sessions:
            session.close()

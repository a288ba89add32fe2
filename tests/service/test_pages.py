"""ListVms and GetVm in pages, each bounded in bytes and in work."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._daemon import Daemon
from irqchipd.edge.pages import LISTED_BYTES, PAGE_BYTES, PAGE_VCPUS, PAGE_VMS, get_vm, list_vms
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import MAX_VCPUS, Vm
from irqchipd.vm.regions import MAX_DEVICES, Space
from irqchipd.vm.registry import Registry
from irqchipd.vm.routing import MAX_GSIS


@pytest.fixture
def registry() -> Registry:
    return Registry(max_vms=2000)


def pages(registry: Registry, size: int = 0) -> Iterator[pb.ListVmsResponse]:
    token = ""
    while True:
        response = pb.ListVmsResponse()
        list_vms(registry, pb.ListVmsRequest(page_size=size, page_token=token), response)
        yield response
        token = response.next_page_token
        if not token:
            return


def pages_of(registry: Registry, name: str) -> Iterator[pb.GetVmResponse]:
    token = ""
    while True:
        response = pb.GetVmResponse()
        get_vm(registry, pb.GetVmRequest(vm=name, page_token=token), response)
        yield response
        token = response.next_page_token
        if not token:
            return


def names(response: pb.ListVmsResponse) -> list[str]:
    return [info.name for info in response.vms]


def full_of_sessions(vm: Vm) -> None:
    """A VM with 100 Sessions that drive all lines."""
    vm.create_irqchip()
    for number in range(100):
        source = vm.open_source(f"{number}")
        vm.irq_lines([gsi << 1 | 1 for gsi in range(MAX_GSIS)], source)


def test_a_list_without_vms_is_one_empty_page(registry: Registry) -> None:
    assert list(pages(registry)) == [pb.ListVmsResponse()]


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11, (1 << 32) - 1])
def test_each_vm_is_on_one_page_in_the_order_of_names(registry: Registry, size: int) -> None:
    for number in range(10):
        registry.create(f"vm{number}")
    found = [names(page) for page in pages(registry, size)]
    assert [name for page in found for name in page] == [f"vm{number}" for number in range(10)]
    assert all(len(page) == size for page in found[:-1])
    assert 0 < len(found[-1]) <= size


def test_pages_hold_while_vms_come_and_go(registry: Registry) -> None:
    for number in range(10, 50):
        registry.create(f"vm{number}")
    listed = []
    for step, page in enumerate(pages(registry, 5)):
        listed += names(page)
        registry.delete(page.next_page_token or "vm49")  # the VM that the token names may be gone
        registry.create(f"a{step}")
    assert listed == [f"vm{number}" for number in range(10, 50)]


def test_the_vms_of_a_page_are_bounded(registry: Registry) -> None:
    for number in range(PAGE_VMS + 1):
        registry.create(f"{number}")
    assert [len(page.vms) for page in pages(registry)] == [PAGE_VMS, 1]


def test_the_vcpus_of_a_page_are_bounded(registry: Registry) -> None:
    for number in range(PAGE_VCPUS // MAX_VCPUS + 2):
        vm = registry.create(f"{number}")
        for vcpu in range(MAX_VCPUS):
            vm.create_vcpu(vcpu)
    assert [len(page.vms) for page in pages(registry)] == [PAGE_VCPUS // MAX_VCPUS, 2]


def test_the_bytes_of_a_page_are_bounded_whatever_its_vms_hold(registry: Registry) -> None:
    for number in range(12):
        full_of_sessions(registry.create(f"{number:02}"))
    found = list(pages(registry))
    assert [name for page in found for name in names(page)] == [f"{number:02}" for number in range(12)]
    assert max(page.ByteSize() for page in found) <= PAGE_BYTES + 100
    info = found[0].vms[0]
    assert info.session_count == 100
    assert [session.client for session in info.sessions] == ["0", "1", "2"]
    assert info.ByteSize() < LISTED_BYTES + 200


def test_a_vms_sessions_come_in_pages(registry: Registry) -> None:
    vm = registry.create("vm")
    full_of_sessions(vm)
    owner = vm.open_source("regions")
    for space in (Space.PIO, Space.MMIO):
        for number in range(MAX_DEVICES - 5):
            vm.register_region(owner, space, 0x1000 + number, 1, lambda _: None)
    found = list(pages_of(registry, "vm"))
    sessions = [session for page in found for session in page.vm.sessions]
    assert [session.client for session in sessions] == [*map(str, range(100)), "regions"]
    assert len(sessions[-1].regions) == 2 * (MAX_DEVICES - 5)
    assert len(found) == 4
    assert max(page.ByteSize() for page in found) <= PAGE_BYTES + 1000
    assert {page.vm.session_count for page in found} == {101}
    assert {page.vm.name for page in found} == {"vm"}


def test_sessions_that_end_between_pages_do_no_harm(registry: Registry) -> None:
    vm = registry.create("vm")
    full_of_sessions(vm)
    sources = {source.client: source for source in vm._sources.values()}
    listed = []
    for page in pages_of(registry, "vm"):
        listed += [session.client for session in page.vm.sessions]
        for client in listed[-5:]:
            vm.close_source(sources[client])
    assert listed == [*map(str, range(100))]


@pytest.mark.parametrize("token", ["x y", "a" * 65, "-", "\n", "é"])
def test_an_invalid_token_of_a_list_is_einval(registry: Registry, token: str) -> None:
    with pytest.raises(VmError) as caught:
        list_vms(registry, pb.ListVmsRequest(page_token=token), pb.ListVmsResponse())
    assert (caught.value.reason, len(caught.value.message) < 100) == ("EINVAL", True)


@pytest.mark.parametrize("token", ["x", "-1", " 1", "1_0", "1" * 20, "1" * 100_000, "²", "\u0661"])
def test_an_invalid_token_of_a_vms_sessions_is_einval(registry: Registry, token: str) -> None:
    registry.create("vm")
    with pytest.raises(VmError) as caught:
        get_vm(registry, pb.GetVmRequest(vm="vm", page_token=token), pb.GetVmResponse())
    assert (caught.value.reason, len(caught.value.message) < 100) == ("EINVAL", True)


def test_a_token_beyond_the_end_is_an_empty_page(registry: Registry) -> None:
    registry.create("vm").open_source("x")
    response = pb.GetVmResponse()
    get_vm(registry, pb.GetVmRequest(vm="vm", page_token="999"), response)
    assert (list(response.vm.sessions), response.vm.session_count, response.next_page_token) == ([], 1, "")
    listed = pb.ListVmsResponse()
    list_vms(registry, pb.ListVmsRequest(page_token="zzz"), listed)
    assert listed == pb.ListVmsResponse()


def test_pages_over_grpc(irqchip_server: Daemon) -> None:
    with grpc.insecure_channel(irqchip_server.target) as channel:
        stub = IrqchipServiceStub(channel)
        for name in ("a", "b", "c"):
            stub.CreateVm(pb.CreateVmRequest(vm=f"pages-{name}"))
        page = stub.ListVms(pb.ListVmsRequest(page_size=2, page_token="pages-"))
        assert [info.name for info in page.vms] == ["pages-a", "pages-b"]
        page = stub.ListVms(pb.ListVmsRequest(page_size=2, page_token=page.next_page_token))
        assert page.vms[0].name == "pages-c"
        answer = stub.GetVm(pb.GetVmRequest(vm="pages-a"))
        assert (answer.vm.session_count, answer.vm.lateness_ns, answer.next_page_token) == (0, 0, "")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListVms(pb.ListVmsRequest(page_token="/"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetVm(pb.GetVmRequest(vm="pages-a", page_token="/"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        for name in ("a", "b", "c"):
            stub.DeleteVm(pb.DeleteVmRequest(vm=f"pages-{name}"))

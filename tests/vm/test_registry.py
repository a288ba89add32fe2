"""The VMs of a daemon, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from irqchipd.vm.architectures import ARCHITECTURES
from irqchipd.vm.machine import Vm
from irqchipd.vm.registry import Registry
from irqchipd.vm.snapshot import X86
from tests.vm.pc import refused
from tests.waiting import PATIENCE


def names(registry: Registry) -> list[str]:
    return [vm.name for vm in registry.after("", 100)]


def test_vms_are_found_by_name_and_listed_in_its_order() -> None:
    registry = Registry(max_vms=4)
    created = {name: registry.create(name) for name in ("web", "db", "Cache")}
    assert names(registry) == ["Cache", "db", "web"]
    assert all(registry.get(name) is vm for name, vm in created.items())
    with refused("ENOENT"):
        registry.get("mail")


def test_a_name_is_taken_once() -> None:
    registry = Registry(max_vms=4)
    first = registry.create("web")
    with refused("EEXIST"):
        registry.create("web")
    assert registry.get("web") is first


@pytest.mark.parametrize("name", ["a", "0", "A-b_c.9", "x" * 64])
def test_valid_names(name: str) -> None:
    assert Registry(max_vms=1).create(name).name == name


@pytest.mark.parametrize("name", [" ", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "x" * 65])
def test_invalid_names(name: str) -> None:
    registry = Registry(max_vms=1)
    with refused("EINVAL"):
        registry.create(name)
    assert names(registry) == []


def test_a_vm_without_a_name_gets_one_that_is_free() -> None:
    registry = Registry(max_vms=4)
    registry.create("vm-2")
    picked = [registry.create().name for _ in range(3)]
    assert picked == ["vm-1", "vm-3", "vm-4"]


def test_a_picked_name_is_not_picked_again() -> None:
    registry = Registry(max_vms=1)
    first = registry.create().name
    registry.delete(first)
    assert registry.create().name != first


def test_there_are_as_many_vms_as_are_allowed() -> None:
    registry = Registry(max_vms=1)
    registry.create("one")
    with refused("ENOSPC"):
        registry.create("two")
    registry.delete("one")
    assert registry.create("two").name == "two"


def test_the_vms_have_as_many_vcpus_as_are_allowed() -> None:
    vm = Registry(max_vms=1, max_vcpus=1).create()
    vm.create_vcpu(0)
    with refused("EINVAL"):
        vm.create_vcpu(1)


def test_a_deleted_vm_refuses_calls_of_its_holders() -> None:
    registry = Registry(max_vms=1)
    told: list[str] = []
    vm = registry.create("web")
    vm.open_source("device", lambda: told.append("deleted"))
    registry.delete("web")
    assert told == ["deleted"]
    for operation in (lambda: registry.get("web"), lambda: registry.delete("web"), vm.describe):
        with refused("ENOENT"):
            operation()
    assert names(registry) == []


@contextmanager
def being_made(registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A VM whose creation takes its time in another thread, until the event is set."""
    begun, go_on = threading.Event(), threading.Event()
    real = ARCHITECTURES[X86]

    def slow(name_: str, *arguments: Any) -> Vm:
        if name_ == name:
            begun.set()
            assert go_on.wait(PATIENCE)
        return real.make(name_, *arguments)

    monkeypatch.setitem(ARCHITECTURES, X86, replace(real, make=slow))
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(registry.create, name)
        try:
            assert begun.wait(PATIENCE)
            yield go_on
        finally:
            go_on.set()
        made.result(PATIENCE)


def test_a_vm_being_created_holds_its_name_and_its_place_but_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(max_vms=3)
    with being_made(registry, "vm-1", monkeypatch):
        assert registry.create("quick").name == "quick"
        assert registry.create().name == "vm-2"
        with refused("EEXIST"):
            registry.create("vm-1")
        with refused("ENOSPC"):
            registry.create("fourth")
        for call in (registry.get, registry.delete):
            with refused("ENOENT"):
                call("vm-1")
        assert names(registry) == ["quick", "vm-2"]
    assert names(registry) == ["quick", "vm-1", "vm-2"]


def test_a_failed_creation_frees_its_name_and_its_place() -> None:
    registry = Registry(max_vms=1)
    state = registry.create("web").save()
    registry.delete("web")
    for _ in range(2):
        with refused("EINVAL"):
            registry.restore("web", replace(state, clock=7))
    assert registry.restore("web", state).name == "web"


def test_the_list_continues_after_any_name() -> None:
    registry = Registry(max_vms=10)
    for name in ("b", "d", "a", "c", "B"):
        registry.create(name)
    registry.delete("c")
    assert [vm.name for vm in registry.after("", 2)] == ["B", "a"]
    assert [vm.name for vm in registry.after("a", 9)] == ["b", "d"]
    assert [vm.name for vm in registry.after("c", 9)] == ["d"]
    assert registry.after("d", 9) == []

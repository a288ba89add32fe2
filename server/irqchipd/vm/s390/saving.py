"""Saving, checking and restoring an s390 VM; each chip saves, checks and resumes its own state."""

from __future__ import annotations

import errno
from typing import Any, Final

from irqchipd.chips.s390.flic import check_flic
from irqchipd.chips.s390.local import MAX_CPUS
from irqchipd.chips.saved import check, in_range
from irqchipd.vm import saving
from irqchipd.vm.errors import VmError
from irqchipd.vm.routing import MAX_GSIS, S390Route
from irqchipd.vm.s390.board import S390Board, adapter_route
from irqchipd.vm.s390.cpu import check_vcpu
from irqchipd.vm.snapshot import S390State, VmState

# The most floating interrupts of a snapshot, so that it fits into a message with the VM's other state.
MAX_SAVED: Final = 8192


def save(board: S390Board) -> dict[str, Any]:
    """The board: fields of VmState. E2BIG where too many interrupts are pending."""
    pending = len(board.flic.floating)
    if pending > MAX_SAVED:
        raise VmError(
            errno.E2BIG,
            f"{pending} floating interrupts are pending; a snapshot has at most {MAX_SAVED}: let vCPUs take some, or"
            " clear them",
        )
    return {
        "s390": S390State(
            can_create_irqchip=board.can_create,
            irqchip=board.created,
            user_controls=board.user_controls,
            device=board.has_device,
            flic=board.save_flic(),
            vcpus=tuple(cpu.save() for cpu in board.cpus),
        )
    }


def restore_board(board: S390Board, state: VmState) -> None:
    """Restore a new board from a checked state."""
    saved = state.s390
    assert saved is not None
    board.can_create, board.created = saved.can_create_irqchip, saved.irqchip
    board.user_controls, board.has_device = saved.user_controls, saved.device
    board.flic.resume(saved.flic)
    board.set_routes(state.routing)
    for vcpu in saved.vcpus:
        board.add_cpu(vcpu.vcpu).resume(vcpu)


def check_state(state: VmState, max_vcpus: int) -> None:
    """Refuse a state that no s390 VM can have: EINVAL."""
    saving.check_state(state, max_vcpus, resamples=True, check_chips=lambda state: _check_board(state, max_vcpus))


def _check_board(state: VmState, max_vcpus: int) -> None:
    saved = state.s390
    if saved is None:
        check(False, "an s390 VM without s390's state")
        return
    check(saved.can_create_irqchip or not saved.irqchip, "an irqchip without the capability")
    check_flic(saved.flic)
    check(len(saved.vcpus) <= max_vcpus, f"{len(saved.vcpus)} vCPUs; at most {max_vcpus} are allowed")
    saving.unique([vcpu.vcpu for vcpu in saved.vcpus], "vCPUs")
    for vcpu in saved.vcpus:
        in_range(vcpu.vcpu, 0, MAX_CPUS - 1, "a vCPU's id")
        check_vcpu(vcpu)
    gsis = [route.gsi for route in state.routing]
    saving.unique(gsis, "GSIs of routes")
    for route in state.routing:
        in_range(route.gsi, 0, MAX_GSIS - 1, "a GSI")
        if isinstance(route, S390Route):
            check(not route.flags, f"flags {route.flags:#x} of a route")
            path = adapter_route(route)
            check(path.indicator.in_page and path.summary.in_page, f"GSI {route.gsi}'s bits are outside of their pages")
        else:
            check(False, f"GSI {route.gsi} does not lead to an adapter")

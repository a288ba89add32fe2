"""Describes why a vCPU can't go on."""

from __future__ import annotations

import mmap

from .ioctls import Exit, Run

EMULATION = 1  # KVM_INTERNAL_ERROR_*
_INTERNAL_ERRORS = {
    EMULATION: "KVM can't emulate an instruction, or the guest's code is outside of RAM",
    2: "one exception came on top of another",
    3: "an interrupt or exception could not be delivered",
    4: "the processor left the guest for a reason that KVM does not know",
}
HAS_INSTRUCTION = 1 << 0  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES


def describe(reason: int, run: mmap.mmap) -> str:
    """The reason of an exit that is no access, for a message."""
    match reason:
        case Exit.SHUTDOWN:
            return "a triple fault: an exception that came while a double fault was delivered"
        case Exit.FAIL_ENTRY:
            hardware, processor = Run.FAIL_ENTRY.unpack_from(run, Run.UNION)
            return f"the processor refuses the vCPU's state: hardware's reason {hardware:#x}, on processor {processor}"
        case Exit.INTERNAL_ERROR:
            return _internal_error(run)
        case _:
            name = Exit(reason).name if reason in set(Exit) else "unknown"
            return f"an exit that this adapter does not expect from KVM: {reason}, {name}"


def lacks_instruction(run: mmap.mmap) -> bool:
    """Whether an Exit.INTERNAL_ERROR comes from an instruction that KVM's emulator can't execute."""
    suberror: int = Run.INTERNAL.unpack_from(run, Run.UNION)[0]
    return suberror == EMULATION


def _internal_error(run: mmap.mmap) -> str:
    suberror, data, flags, length, code = Run.INTERNAL.unpack_from(run, Run.UNION)
    what = f"KVM's internal error {suberror}: {_INTERNAL_ERRORS.get(suberror, 'unknown')}"
    if suberror == EMULATION and data and flags & HAS_INSTRUCTION:
        what += f"; the instruction's bytes: {code[:length].hex(' ')}"
    return what

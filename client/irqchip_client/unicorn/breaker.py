"""Stops the emulator where it is sound: at the start of a block of guest code.

uc_emu_stop() from another thread is not sound in Unicorn 2.1.4: it takes effect also between the parts of an
instruction that accesses memory, which is then executed again, and `add [counter], 1` adds twice. At the start of a
block it is sound, and Unicorn calls a block hook there. A hook in Python would cost a microsecond or two for every few
instructions of the guest. So the hook is a few instructions of the host's machine code, which look at two words of
memory, and call uc_emu_stop() themselves.
"""

from __future__ import annotations

import ctypes
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from unicorn.unicorn_const import UC_HOOK_BLOCK
from unicorn.unicorn_py3.unicorn import Uc, uclib
from unicorn.x86_const import UC_X86_REG_EFLAGS

from irqchip_client.vmm.machine_code import executable

if TYPE_CHECKING:
    from collections.abc import Callable

IF = 1 << 9

SLICE_NS = 250_000
FEWEST, MOST, GROWTH = 16, 1 << 30, 4  # Blocks in a slice, and its growth over the last one.

# UC_HOOK_BLOCK's callback, in the System V ABI: rdi is the uc_engine, rcx points to a _State.
_X86_64 = bytes.fromhex(
    "8339 00"  # cmp dword [rcx], 0       stop_now
    "75 2e"  # jne stop
    "ff49 04"  # dec dword [rcx + 4]      blocks
    "7e 29"  # jle stop
    "8b41 08"  # mov eax, [rcx + 8]       window
    "85c0"  # test eax, eax
    "74 07"  # jz back
    "ffc8"  # dec eax
    "74 04"  # jz look
    "8941 08"  # mov [rcx + 8], eax
    "c3"  # back: ret
    "57"  # look: push rdi
    "51"  # push rcx
    "4883ec 08"  # sub rsp, 8
    "8b71 20"  # mov esi, [rcx + 32]      register
    "4889e2"  # mov rdx, rsp
    "ff51 18"  # call [rcx + 24]          uc_reg_read
    "58"  # pop rax
    "59"  # pop rcx
    "5f"  # pop rdi
    "2341 24"  # and eax, [rcx + 36]      mask
    "3b41 28"  # cmp eax, [rcx + 40]      closed
    "74 e5"  # je back
    "c741 0c 01000000"  # stop: mov dword [rcx + 12], 1     stopped
    "ff61 10"  # jmp [rcx + 16]           uc_emu_stop
)


class Window(NamedTuple):
    """The guest takes interrupts while some bits of a register differ from `closed`.

    register  its number in Unicorn
    mask      the bits
    closed    their values while the guest takes no interrupts
    """

    register: int
    mask: int
    closed: int


INTERRUPT_FLAG = Window(UC_X86_REG_EFLAGS, IF, 0)


class _State(ctypes.Structure):
    stop_now: int
    blocks: int
    window: int
    stopped: int
    mask: int
    closed: int
    _fields_ = (
        ("stop_now", ctypes.c_uint32),
        ("blocks", ctypes.c_int32),
        ("window", ctypes.c_uint32),
        ("stopped", ctypes.c_uint32),
        ("emu_stop", ctypes.c_void_p),
        ("reg_read", ctypes.c_void_p),
        ("register", ctypes.c_uint32),
        ("mask", ctypes.c_uint32),
        ("closed", ctypes.c_uint32),
    )


class Breaker:
    """Stops one emulator: on request, and after a while, SLICE_NS as a rule.

    A thread that waits for events and stops the emulator would need a processor first. With few processors, the
    scheduler leaves them to the emulator for milliseconds.

    window  when the guest takes interrupts
    native  whether the hook is machine code; it is Python on another host, and without executable memory
    """

    def __init__(self, uc: Uc, window: Window = INTERRUPT_FLAG, *, native: bool = True) -> None:
        self._register = window.register
        self._state = _State(0, 0, 0, 0, _address(uclib.uc_emu_stop), _address(uclib.uc_reg_read), *window)
        self._code = executable(_X86_64) if native else None
        self.native = self._code is not None
        self._blocks = self._state.blocks = FEWEST  # of guest code, in a slice
        self._begun = 0
        if self._code is None:
            uc.hook_add(UC_HOOK_BLOCK, self._at_block)
        else:
            _add_block_hook(uc, ctypes.addressof(self._code), ctypes.addressof(self._state))

    def stop(self) -> None:
        """Stops the emulator at the next block, or at the first if it does not run. From any thread."""
        self._state.stop_now = 1

    def clear(self) -> None:
        """Call this before looking at the reasons for a stop."""
        self._state.stop_now = self._state.stopped = 0

    @property
    def stopped(self) -> bool:
        """Whether the breaker has stopped the emulator since clear()."""
        return bool(self._state.stopped)

    @property
    def slice_over(self) -> bool:
        """Whether the slice is over: the emulator stopped for it, or will."""
        return self._state.blocks <= 0 or perf_counter_ns() >= self._begun + SLICE_NS

    def begin_slice(self) -> None:
        """Begins a slice, with as many blocks as the last one suggests. While the emulator does not run."""
        now = perf_counter_ns()
        executed = self._blocks - self._state.blocks
        if executed > 0:
            blocks = executed * SLICE_NS // (now - self._begun + 1)
            self._blocks = max(min(blocks, GROWTH * self._blocks, MOST), FEWEST)
        self._state.blocks = self._blocks
        self._begun = now

    def stop_after_a_block(self) -> None:
        """Makes the slice one block long. While the emulator does not run."""
        self._blocks = self._state.blocks = 2

    def spent(self) -> None:
        """A hook took longer than blocks do. On the emulator's thread."""
        if perf_counter_ns() >= self._begun + SLICE_NS:
            self._state.stop_now = 1

    def stop_at_window(self, *, after_one: bool = False) -> None:
        """Stops the emulator at the next block that it enters with the window open, or at the next but one.

        On the emulator's thread.
        """
        self._state.window = 2 if after_one else 1

    def narrow_window(self, bits: int) -> None:
        """The window is open if any of these bits is 0. On the emulator's thread."""
        self._state.mask = self._state.closed = bits

    def ignore_window(self) -> None:
        """Undoes stop_at_window()."""
        self._state.window = 0

    def _at_block(self, uc: Uc, *_: object) -> None:
        state = self._state
        if not state.stop_now:
            state.blocks -= 1
            if state.blocks > 0:
                if not state.window:
                    return
                if state.window > 1:
                    state.window -= 1
                    return
                if uc.reg_read(self._register) & state.mask == state.closed:
                    return
        state.stopped = 1
        uc.emu_stop()


def _address(function: Callable[..., object]) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    return address


def _add_block_hook(uc: Uc, code: int, data: int) -> None:
    """Uc.hook_add() with machine code: the binding takes only Python functions."""
    handle = ctypes.c_size_t()
    library: Any = uclib
    error = library.uc_hook_add(
        uc._uch,
        ctypes.byref(handle),
        UC_HOOK_BLOCK,
        ctypes.c_void_p(code),
        ctypes.c_void_p(data),
        ctypes.c_uint64(1),  # All addresses: an end before the begin.
        ctypes.c_uint64(0),
    )
    assert not error, f"uc_hook_add: {error}"

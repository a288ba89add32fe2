"""The Python SDK of irqchipd: the interrupt controller of a virtual machine, as a service.

    with irqchip_client.connect() as client:
        vm = client.create_vm("demo")
        vm.create_irqchip()
        cpu = vm.create_vcpu(0)
        with vm.session("uart", vcpus=[0]) as session:
            session.line(4).raise_()

Everything here blocks; `irqchip_client.aio` has the same names for asyncio, and `irqchip_client.ops` the operations
that a Session takes in batches. IrqchipError is the base of all errors, and help(irqchip_client.IrqchipError) draws
them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from irqchip.builds import choose as _choose

_choose(__path__)

if TYPE_CHECKING:
    from irqchip.place import default_socket

    from . import aio, arm64, ops, s390
    from ._errors import (
        AlreadyExists,
        Busy,
        GuestError,
        InvalidArgument,
        IrqchipError,
        LimitReached,
        NotFound,
        NotReady,
        SessionClosed,
        TimedOut,
        Unavailable,
    )
    from ._events import (
        Doorbell,
        Event,
        EventsDropped,
        GsiAcknowledged,
        GsiMasked,
        GsiResampled,
        InterruptPending,
        IoapicEoi,
        Probe,
        ProbesChanged,
        RegionAccess,
        RegionsLost,
        TraceEvent,
        VcpuSignal,
        VmReset,
    )
    from ._model import (
        Access,
        AdapterRoute,
        Advance,
        Architecture,
        Claim,
        DeviceType,
        GicHost,
        GicInfo,
        Interrupt,
        InterruptCount,
        InterruptCounts,
        InterruptKind,
        InterruptSource,
        IrqchipMode,
        Latency,
        MpState,
        MsiRoute,
        MsrAccess,
        PinRoute,
        RegionInfo,
        ResetReason,
        Route,
        SessionInfo,
        Signal,
        SignalKind,
        Space,
        SysregAccess,
        VcpuEvents,
        VmInfo,
        VmSnapshot,
        Wake,
    )
    from ._state import (
        Chip,
        DeliveryMode,
        IoapicState,
        LapicState,
        PicState,
        PitChannel,
        PitState,
        RedirectionEntry,
    )
    from ._sync.client import Client, Vm, connect, embedded
    from ._sync.irqfd import Irqfd, MemoryPart
    from ._sync.machine import Attributes, Line, Machine, Vcpu
    from ._sync.session import Halt, Session
    from ._sync.streams import Watch
    from .s390 import FlicGroup, InterruptMasks, S390Irq, S390IrqType, VcpuReset

__all__ = [
    "Access",
    "AdapterRoute",
    "Advance",
    "AlreadyExists",
    "Architecture",
    "Attributes",
    "Busy",
    "Chip",
    "Claim",
    "Client",
    "DeliveryMode",
    "DeviceType",
    "Doorbell",
    "Event",
    "EventsDropped",
    "FlicGroup",
    "GicHost",
    "GicInfo",
    "GsiAcknowledged",
    "GsiMasked",
    "GsiResampled",
    "GuestError",
    "Halt",
    "Interrupt",
    "InterruptCount",
    "InterruptCounts",
    "InterruptKind",
    "InterruptMasks",
    "InterruptPending",
    "InterruptSource",
    "InvalidArgument",
    "IoapicEoi",
    "IoapicState",
    "IrqchipError",
    "IrqchipMode",
    "Irqfd",
    "LapicState",
    "Latency",
    "LimitReached",
    "Line",
    "Machine",
    "MemoryPart",
    "MpState",
    "MsiRoute",
    "MsrAccess",
    "NotFound",
    "NotReady",
    "PicState",
    "PinRoute",
    "PitChannel",
    "PitState",
    "Probe",
    "ProbesChanged",
    "RedirectionEntry",
    "RegionAccess",
    "RegionInfo",
    "RegionsLost",
    "ResetReason",
    "Route",
    "S390Irq",
    "S390IrqType",
    "Session",
    "SessionClosed",
    "SessionInfo",
    "Signal",
    "SignalKind",
    "Space",
    "SysregAccess",
    "TimedOut",
    "TraceEvent",
    "Unavailable",
    "Vcpu",
    "VcpuEvents",
    "VcpuReset",
    "VcpuSignal",
    "Vm",
    "VmInfo",
    "VmReset",
    "VmSnapshot",
    "Wake",
    "Watch",
    "aio",
    "arm64",
    "connect",
    "default_socket",
    "embedded",
    "ops",
    "s390",
]

# The order of the search: the modules that most programs need come first.
_HOMES = (
    *("_errors", "_sync.client", "_sync.machine", "_model", "_events", "_state", "_target"),
    *("_sync.irqfd", "_sync.session", "_sync.streams", "s390"),
)


def __getattr__(name: str) -> object:
    # Loaded when first used: gRPC takes a fifth of a second to import, and pytest imports this package, for its
    # plugin, in every run of every project that has it installed.
    if name in ("aio", "arm64", "ops", "s390"):
        return import_module(f".{name}", __name__)
    if name in __all__:
        for home in _HOMES:
            module = import_module(f".{home}", __name__)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

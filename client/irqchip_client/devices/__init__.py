"""Device models and their hosts. run_device() runs a device in its own process, LocalHost in a VMM's process."""

from .block import BlockDevice
from .crtc import Crtc
from .device import Device, DeviceRegion, Host, OutputLine, Timer
from .exit import DebugExit
from .fw_cfg import FwCfg
from .host import LocalHost, RemoteHost
from .i8042 import I8042
from .ide import Ide
from .power import PowerManagement
from .process import run_device
from .rtc import Rtc
from .testing import LinePorts
from .uart import Uart
from .virtio.block import VirtioBlock
from .virtio.console import VirtioConsole

__all__ = [
    "I8042",
    "BlockDevice",
    "Crtc",
    "DebugExit",
    "Device",
    "DeviceRegion",
    "FwCfg",
    "Host",
    "Ide",
    "LinePorts",
    "LocalHost",
    "OutputLine",
    "PowerManagement",
    "RemoteHost",
    "Rtc",
    "Timer",
    "Uart",
    "VirtioBlock",
    "VirtioConsole",
    "run_device",
]

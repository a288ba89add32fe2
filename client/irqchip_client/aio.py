"""The SDK for asyncio: the names of irqchip_client, with `async` and `await` for all I/O.

    async with aio.connect() as client:
        vm = await client.create_vm("demo")
        await vm.create_irqchip()
        cpu = await vm.create_vcpu(0)
        async with vm.session("uart", vcpus=[0]) as session:
            await session.line(4).raise_()

The names without I/O, such as errors, states and events, are in irqchip_client.
"""

from ._asyncio.client import Client, Vm, connect, embedded
from ._asyncio.machine import Attributes, Line, Machine, Vcpu
from ._asyncio.session import Halt, Session
from ._asyncio.streams import Watch

__all__ = ["Attributes", "Client", "Halt", "Line", "Machine", "Session", "Vcpu", "Vm", "Watch", "connect", "embedded"]

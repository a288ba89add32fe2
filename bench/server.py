"""irqchipd with what it is measured against on the same server: a no-op RPC, and VMs whose batches execute nothing."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd import daemon
from irqchipd.__main__ import main
from irqchipd.edge import session
from irqchipd.edge.executor import Awaited, Own, execute_batch
from irqchipd.limits import Limits
from irqchipd.vm.machine import Vm
from irqchipd.vm.sources import LineSource

NOOP_CALL = "/bench.Noop/Call"
NOOP_VM = "noop"


async def _noop(request: pb.IrqLineRequest, context: object) -> pb.IrqLineResponse:  # noqa: ARG001
    return pb.IrqLineResponse()


class _Daemon(daemon.Daemon):
    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        _, service, method = NOOP_CALL.split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            _noop, pb.IrqLineRequest.FromString, pb.IrqLineResponse.SerializeToString
        )
        self._server.add_registered_method_handlers(service, {method: handler})


def _execute_nothing(
    vm: Vm, batch: pb.Batch, source: LineSource, limits: Limits, own: Mapping[str, Own]
) -> Generator[Awaited, None, pb.BatchResult]:
    if vm.name != NOOP_VM:
        return (yield from execute_batch(vm, batch, source, limits, own))
    answer = pb.BatchResult(serial=batch.serial)
    for operation in batch.operations:
        answer.results.add().irq_lines.statuses.extend([1] * len(operation.irq_lines.changes))
    return answer


if __name__ == "__main__":
    daemon.Daemon = _Daemon  # type: ignore[misc]
    vars(session)["execute_batch"] = _execute_nothing
    main()

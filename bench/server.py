"""irqchipd with two references on the same server: a no-op RPC, and VMs that execute no operation of their batches."""

from __future__ import annotations

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd import daemon
from irqchipd.__main__ import main
from irqchipd.edge import session
from irqchipd.edge.batch import Batch, BeginHalt, execute
from irqchipd.edge.operations import SessionCaller
from irqchipd.holdings import Holdings
from irqchipd.metrics.exposition import Exposition
from irqchipd.vm.pending import Slices

NOOP_CALL = "/bench.Noop/Call"
NOOP_VM = "noop"


async def _noop(request: pb.IrqLineRequest, context: object) -> pb.IrqLineResponse:  # noqa: ARG001
    return pb.IrqLineResponse()


class _Daemon(daemon.Daemon):
    def __init__(self, holdings: Holdings, exposition: Exposition | None = None, *, leaves: bool = True) -> None:
        super().__init__(holdings, exposition, leaves=leaves)
        _, service, method = NOOP_CALL.split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            _noop, pb.IrqLineRequest.FromString, pb.IrqLineResponse.SerializeToString
        )
        self._server.add_registered_method_handlers(service, {method: handler})


def _execute_nothing(on: SessionCaller, batch: Batch, most: int, begin_halt: BeginHalt) -> Slices[bytes | None]:
    if on.vm.name != NOOP_VM:
        return (yield from execute(on, batch, most, begin_halt))
    for operation, (changes,) in batch.calls():
        batch.add(operation, [1] * len(changes))
    return batch.answer()


if __name__ == "__main__":
    daemon.Daemon = _Daemon  # type: ignore[misc]
    vars(session)["execute"] = _execute_nothing
    main()

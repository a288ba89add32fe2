"""gRPC's asyncio server, without a fault: a call of a method whose name is not UTF-8 ends gRPC's server.

The server's loop decodes the names of unregistered methods, and an exception ends the loop. So here all methods are
registered, and calls of other methods are answered before they reach the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

_REFUSALS = 1000  # at once; further calls wait


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """Gives the loop only calls of registered methods, and refuses the others."""

    async def _request_call(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        refusals: set[asyncio.Task[None]] = set()
        while True:
            state = await super()._request_call()
            refusal = loop.create_task(_refuse(cygrpc._ServicerContext(state, None, None, loop)))
            refusals.add(refusal)
            refusal.add_done_callback(refusals.discard)
            if len(refusals) >= _REFUSALS:
                await asyncio.wait(refusals, return_when=asyncio.FIRST_COMPLETED)


async def _refuse(context: Any) -> None:
    with suppress(grpc.aio.AbortError, grpc.aio.InternalError):  # abort raises; or the client has left
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "irqchipd has no such method")


class Server(_server.Server):
    """grpc.aio.Server. Only registered methods are served."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Core(self._loop, None, (), None, _server._augment_channel_arguments(options, None), None)

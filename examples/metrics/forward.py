"""Forwards TCP connections to the unix socket of --metrics, for a Prometheus in a container of its own.

python3 -m examples.metrics.forward --listen 0.0.0.0:9464 --to /run/metrics/socket
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from functools import partial


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _forward(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_unix_connection(path)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _serve(listen: str, path: str) -> None:
    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(partial(_forward, path), host, int(port))
    async with server:
        await server.serve_forever()


def main() -> None:
    """Forward until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="PATH")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.listen, arguments.to))


if __name__ == "__main__":
    main()

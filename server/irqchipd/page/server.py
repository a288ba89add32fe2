"""The page's server: an event loop in a thread of its own, so that nothing here holds up the edges."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from irqchipd.http import Answer, HttpServer, RefusedError, Request
from irqchipd.limits import Limits
from irqchipd.listen import ListenError, TcpAddress
from irqchipd.page.counts import counts
from irqchipd.page.watched import FIELDS_TEXT, Viewer, Watched, whole_history
from irqchipd.vm.architectures import ARCHITECTURES
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

LINGER: Final = 5.0  # seconds for which a VM's history stays after the last viewer has left
MOST_VMS: Final = 500  # the most in a list
HISTORIES: Final = 2  # the most that are sent at a time
_KINDS: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_JSON: Final = "application/json"


class PageServer:
    """Listens from its creation; serves between start() and stop()."""

    def __init__(self, registry: Registry, limits: Limits, address: TcpAddress, name: str = "") -> None:
        self._registry = registry
        self._viewers = limits.viewers
        self._looking = 0
        self._histories = 0
        self._watched: dict[Vm, Watched] = {}
        self._files = _static_files()
        self._http = HttpServer(self._handle, (name,) if name else ())
        try:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            self._socket = socket.create_server((address.host, address.port), family=family, backlog=32)
        except OSError as error:
            raise ListenError(f"{address} can't be listened on: {error.strerror}; choose another address") from error
        self.address = TcpAddress(address.host, self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="irqchipd page", daemon=True)

    @property
    def url(self) -> str:
        """The page's URL."""
        return f"http://{self.address.bind}/"

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving, without waiting."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._http.start(self._socket))
            self._loop.run_forever()
        except Exception:
            log.exception("the page's server has ended")
        finally:
            self._socket.close()

    # Requests.

    async def _handle(self, request: Request, answer: Answer) -> None:
        match request.path:
            case ("",):
                await self._static("index.html", answer)
            case ("api", "vms"):
                await answer.whole(self._vms(), _JSON)
            case ("api", "tracepoints"):
                await answer.whole(FIELDS_TEXT.encode(), _JSON)
            case ("api", "vms", name, "state"):
                vm = self._vm(name)
                async with _Look(self, vm) as watched:
                    await answer.whole(watched.everything().encode(), _JSON)
            case ("api", "vms", name, "interrupts"):
                await self._counts(self._vm(name), answer)
            case ("api", "vms", name, "history"):
                await self._history(self._vm(name), answer)
            case ("api", "vms", name, "live"):
                await self._live(self._vm(name), answer)
            case (name,):
                await self._static(name, answer)
            case _:
                raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")

    async def _static(self, name: str, answer: Answer) -> None:
        found = self._files.get(name)
        if found is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")
        await answer.whole(found, f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8")

    def _vms(self) -> bytes:
        vms = self._registry.after("", MOST_VMS + 1)
        listed = [{"name": vm.name, "architecture": ARCHITECTURES[vm.architecture].name} for vm in vms[:MOST_VMS]]
        return json.dumps({"vms": listed, "more": len(vms) > MOST_VMS}).encode()

    def _vm(self, name: str) -> Vm:
        try:
            return self._registry.get(name)
        except VmError as error:
            raise RefusedError(HTTPStatus.NOT_FOUND, error.message) from None

    async def _counts(self, vm: Vm, answer: Answer) -> None:
        try:
            found = counts(vm)
        except VmError as error:
            raise RefusedError(HTTPStatus.NOT_FOUND, error.message) from None
        await answer.whole(found, _JSON)

    async def _history(self, vm: Vm, answer: Answer) -> None:
        if self._histories >= HISTORIES:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"{HISTORIES} histories are being sent: try again")
        self._histories += 1
        try:
            async with _Look(self, vm) as watched:
                await answer.whole(await whole_history(watched.history), _JSON)
        finally:
            self._histories -= 1

    async def _live(self, vm: Vm, answer: Answer) -> None:
        """Server-sent events: first everything, then the changes."""
        async with _Look(self, vm) as watched:
            await answer.begin("text/event-stream")
            if answer.head_only:
                return
            viewer = Viewer()
            watched.viewers.add(viewer)
            try:
                while True:
                    message = await viewer.take() or watched.everything()
                    await answer.piece(f"data: {message}\n\n".encode())
                    if watched.error is not None and vm.agenda.deleted:
                        return
            finally:
                watched.viewers.discard(viewer)

    # Viewers of VMs.

    def look(self, vm: Vm) -> Watched:
        """A viewer begins to look at a VM."""
        if self._looking >= self._viewers:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the page has {self._viewers} viewers, the most allowed (--max-viewers)",
            )
        watched = self._watched.get(vm)
        if watched is None:
            if len(self._watched) >= self._viewers:  # histories without viewers go first
                self._forget_idle()
            try:
                watched = Watched(vm)
            except VmError as error:
                raise RefusedError(HTTPStatus.NOT_FOUND, error.message) from None
            self._watched[vm] = watched
        self._looking += 1
        watched.looking += 1
        return watched

    def leave(self, watched: Watched) -> None:
        """A viewer leaves; the history stays a while, for when the page is loaded again."""
        self._looking -= 1
        watched.looking -= 1
        watched.left += 1
        if not watched.looking:
            self._loop.call_later(LINGER, self._forget, watched, watched.left)

    def _forget(self, watched: Watched, left: int) -> None:
        if not watched.looking and watched.left == left:
            self._close(watched)

    def _forget_idle(self) -> None:
        for watched in [watched for watched in self._watched.values() if not watched.looking]:
            self._close(watched)

    def _close(self, watched: Watched) -> None:
        if self._watched.pop(watched.vm, None) is not None:
            watched.close()


class _Look:
    """A viewer of a VM, for the duration of an answer."""

    def __init__(self, server: PageServer, vm: Vm) -> None:
        self._server = server
        self._vm = vm

    async def __aenter__(self) -> Watched:
        self._watched = self._server.look(self._vm)
        return self._watched

    async def __aexit__(self, *_: object) -> None:
        self._server.leave(self._watched)


def _static_files() -> dict[str, bytes]:
    """The page's files by name, read once: no request names a path."""
    folder = files("irqchipd.page").joinpath("static")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _KINDS}

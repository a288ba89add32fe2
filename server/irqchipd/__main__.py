"""The command irqchipd."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click

from irqchip.builds import is_compiled
from irqchipd.daemon import serve
from irqchipd.edge.loop import Loop
from irqchipd.limits import Limits, allow_descriptors
from irqchipd.listen import ListenError, default_address, parse_address, parse_http
from irqchipd.logs import FORMATS, log_to_stderr
from irqchipd.stopping import block_signals, leave

log = logging.getLogger(__name__)

DEFAULTS = Limits()
_MOST = (1 << 31) - 1  # the largest value of gRPC's settings


def _limit(flag: str, default: int, text: str, least: int = 1) -> Callable[[Any], Any]:
    return click.option(flag, type=click.IntRange(least, _MOST), default=default, show_default=True, help=text)


class _Command(click.Command):
    """The command. The message for a bad option says what to write instead."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # Parsing empties it.
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _LISTENING:
                raise
            where = given[given.index(error.option_name) + 1 :] if error.option_name in given else []
            raise click.UsageError(f"there is no {error.option_name}: {_listen(*where[:1])}", ctx) from None
        except click.BadParameter as error:
            if error.param is None or error.param.default is None:
                raise
            example = f"{error.param.opts[0]} {error.param.default}"
            raise click.UsageError(f"{error.format_message()} Write, for example: {example}", ctx) from None
        if ctx.args and not ctx.resilient_parsing:
            raise click.UsageError(
                f"irqchipd takes only options, not {ctx.args[0]!r:.200}: {_listen(ctx.args[0])}", ctx
            )
        return rest


# What other daemons call the option for where to listen.
_LISTENING = ("--address", "--bind", "--host", "--port", "--socket", "-p")


def _listen(where: str = "") -> str:
    """Advice: where to listen is --listen."""
    if where.isdigit():
        return f"write --listen tcp://127.0.0.1:{where:.20}"
    if where.startswith("/"):
        return f"write --listen unix://{where:.200}"
    return "where to listen is --listen unix:///PATH or --listen tcp://127.0.0.1:PORT"


@click.command(
    cls=_Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "allow_extra_args": True},
)
@click.version_option(
    version("irqchipd"),
    prog_name="irqchipd",
    message=f"%(prog)s, version %(version)s ({'compiled' if is_compiled('irqchipd.vm.machine') else 'pure Python'})",
)
@click.option(
    "--listen",
    "listen",
    metavar="ADDRESS",
    multiple=True,
    help="Where to listen: unix:///PATH or tcp://HOST:PORT; may be repeated. [default: the socket"
    " $XDG_RUNTIME_DIR/irqchipd/irqchipd.sock, or /tmp/irqchipd-UID/irqchipd.sock without XDG_RUNTIME_DIR]",
)
@click.option(
    "--allow-insecure",
    is_flag=True,
    help="Allow tcp:// on addresses that other machines can reach. The daemon neither encrypts nor authenticates.",
)
@click.option(
    "--http",
    metavar="ADDRESS",
    help="Serve a live, read-only page for browsers at http://HOST:PORT. Addresses that other machines can reach need"
    " --allow-insecure.",
)
@_limit("--max-vms", DEFAULTS.vms, "The most VMs.")
@_limit("--max-vcpus", DEFAULTS.vcpus, "The most vCPUs of a VM.")
@_limit("--max-sessions", DEFAULTS.sessions, "The most Sessions and Watches, of all VMs together.")
@_limit(
    "--max-message",
    DEFAULTS.message_bytes,
    "The most bytes of a client's message, and of a batch's results.",
    least=4096,
)
@_limit("--max-batch", DEFAULTS.batch_operations, "The most operations of a batch.")
@_limit("--max-events", DEFAULTS.queued_events, "The most events queued for a Session or a Watch.")
@_limit(
    "--max-irqfds", DEFAULTS.irqfds, "The most eventfds, for irqfds and doorbells, of all Sessions together.", least=0
)
@_limit(
    "--poll",
    DEFAULTS.poll_us,
    "The most microseconds that the port polls before it blocks. 0 turns polling off.",
    least=0,
)
@_limit(
    "--max-rings",
    DEFAULTS.rings,
    "The most Sessions of a port with rings in shared memory. 0 turns rings off.",
    least=0,
)
@_limit("--max-viewers", DEFAULTS.viewers, "The most viewers of the page.")
@_limit("--access-timeout", DEFAULTS.access_ms, "Milliseconds that a region's owner may take to answer an access.")
@click.option(
    "--metrics",
    metavar="ADDRESS",
    help="Serve metrics for Prometheus: tcp://HOST:PORT, or unix:///PATH. [default: none are kept]",
)
@_limit("--metrics-vms", 0, "The most VMs that have metrics of their own, with their names as labels.", least=0)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What the log on standard error has. info: VMs, Sessions and regions; debug: also refused operations.",
)
@click.option(
    "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="json: one object per line."
)
def main(
    listen: tuple[str, ...],
    allow_insecure: bool,
    http: str | None,
    max_vms: int,
    max_vcpus: int,
    max_sessions: int,
    max_message: int,
    max_batch: int,
    max_events: int,
    max_irqfds: int,
    max_rings: int,
    max_viewers: int,
    poll: int,
    access_timeout: int,
    metrics: str | None,
    metrics_vms: int,
    log_level: str,
    log_format: str,
) -> None:
    """Serve the interrupt controllers of virtual machines, until SIGTERM or SIGINT.

    Prints a line "listening on ADDRESS" for each address once it can be connected to.
    """
    block_signals()
    log_to_stderr(log_level.upper(), log_format)
    allow_descriptors()
    limits = Limits(
        max_vms,
        max_vcpus,
        max_sessions,
        max_message,
        max_batch,
        max_events,
        max_irqfds,
        poll,
        access_timeout,
        max_rings,
        max_viewers,
    ).within_descriptors()
    if limits.irqfds < max_irqfds:
        log.warning("at most %d eventfds: the process may have too few descriptors for more", limits.irqfds)
    try:
        addresses = [parse_address(text, allow_insecure) for text in listen] or [default_address()]
        metrics_at = None if metrics is None else parse_address(metrics, allow_insecure)
        page_at = None if http is None else parse_http(http, allow_insecure)
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(serve(limits, addresses, click.echo, metrics_at, metrics_vms, page_at))
    except ListenError as error:
        raise click.ClickException(str(error)) from error
    sys.stdout.flush()
    leave(0)


if __name__ == "__main__":
    main()

"""`splitserve link`: stand between an agent and a service as a slow link."""

import signal
import threading
from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from splitserve.bench.link import Link, LinkSettings, self_test
from splitserve.bench.play import play
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.plan.trace import read_trace
from splitserve.settings import Settings


class Options(Settings):
    """Emulate a slow link: a TCP relay on loopback with rate, delay and jitter.

    Tests itself first, prints one JSON line with its address, and runs until SIGTERM or SIGINT.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve link", env_prefix="SPLITSERVE_LINK_"
    )

    to: str
    """The service, host:port."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on, 0 for a free one."""
    rate_mbps: float | None = Field(default=None, gt=0, le=10_000)
    """Rate in either direction, Mbit/s; no limit when left out."""
    delay_ms: float = Field(default=0.0, ge=0, le=5000)
    """One-way delay, ms."""
    jitter_ms: float = Field(default=0.0, ge=0, le=5000)
    """Up to this much more delay, ms."""
    trace: Path | None = None
    """File of lines `seconds,bits_per_second`, counted from the address line on: the rate over
    time, 0 lets nothing pass; --rate-mbps holds before its first line."""


def run(options: Options) -> int:
    """Relay until a signal."""
    host, _, port = options.to.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--to {options.to!r} is no host:port")
    rate_bps = options.rate_mbps * 1e6 if options.rate_mbps else None
    trace = read_trace(options.trace) if options.trace else []
    settings = LinkSettings(rate_bps, options.delay_ms / 1e3, options.jitter_ms / 1e3)
    checked = self_test(settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    with Link((host, int(port)), settings, port=options.port) as link:
        address = {"url": f"http://{link.address[0]}:{link.address[1]}"}
        measured = {"round_trip_s": checked.round_trip_s, "rate_bps": checked.rate_bps}
        print_document(address | measured)
        stop = threading.Event()
        threading.Thread(target=partial(play, trace, link.set_rate, stop), daemon=True).start()
        signal.sigwait((signal.SIGTERM, signal.SIGINT))
        stop.set()
    return 0

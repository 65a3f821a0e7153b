"""A link in user space: a TCP relay with rate, delay, jitter, silence and resets.

One thread reads and one writes per direction, for `time.sleep` is exact to a tenth of a
millisecond where an event loop rounds to whole ones. It moves byte streams, so it shows no packet
loss or reordering, and opening a connection takes no emulated round trip.
"""

import contextlib
import queue
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from splitserve.bench.lane import Lane, Place
from splitserve.errors import MeasurementError

CHUNK_MIN_BYTES = 1448
CHUNK_MAX_BYTES = 65536
CHUNK_S = 0.001
QUEUE_CHUNKS = 4096
SLICE_S = 0.005  # after which one who waits looks whether the rate has changed
RATE_TOLERANCE = 0.05
DELAY_TOLERANCE_S = 0.001
PINGS = 21
TRIES = 3
CONNECT_S = 10.0
ACCEPT_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the link does to each direction.

    Args:
        rate_bps: bits per second, None for no limit, 0 lets nothing pass.
        delay_s: one-way delay; the round trip is twice this.
        jitter_s: up to this much more delay, uniform, order kept.
    """

    rate_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0


class Link:
    """A relay on loopback that stands between clients and one service.

    Args:
        target: host and port of the service.
        settings: may be replaced while the link runs, by assigning `settings`; the rate holds for
            what is under way too.
        seed: of the jitter.
        port: where to listen, 0 for a free one.
    """

    def __init__(
        self, target: tuple[str, int], settings: LinkSettings, seed: int = 0, port: int = 0
    ) -> None:
        self._settings = settings
        self._target = target
        self._random = random.Random(seed)  # noqa: S311  # jitter, not a secret
        self._up = threading.Event()
        self._up.set()
        self._is_cut = False
        self._is_closed = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        now = time.perf_counter()
        self._lanes = (Lane(now, settings.rate_bps), Lane(now, settings.rate_bps))
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> "Link":
        _spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._up.set()

    @property
    def settings(self) -> LinkSettings:
        """What it does now."""
        return self._settings

    @settings.setter
    def settings(self, settings: LinkSettings) -> None:
        self._settings = settings
        for lane in self._lanes:
            lane.set_rate(time.perf_counter(), settings.rate_bps)

    def set_rate(self, rate_bps: float | None) -> None:
        """Change the rate alone."""
        self.settings = replace(self.settings, rate_bps=rate_bps)

    def stall(self) -> None:
        """Let no byte pass; connections stay open, so only a time-out notices."""
        self._up.clear()

    def cut(self) -> None:
        """Reset every connection, and new ones at once."""
        self._is_cut = True
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for end in sockets:
            _reset(end)

    def heal(self) -> None:
        """End a stall or a cut."""
        self._is_cut = False
        self._up.set()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed, or out of descriptors for a while
                time.sleep(ACCEPT_PAUSE_S)
                continue
            _spawn(partial(self._connect, near))

    def _connect(self, near: socket.socket) -> None:
        if self._is_cut:
            _reset(near)
            return
        try:
            far = socket.create_connection(self._target, CONNECT_S)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {near, far}
        open_ways = threading.Semaphore(1)
        for lane, source, sink in ((0, near, far), (1, far, near)):
            self._pump(self._lanes[lane], source, sink, open_ways)

    def _pump(
        self, lane: Lane, source: socket.socket, sink: socket.socket, ways: threading.Semaphore
    ) -> None:
        """Move one direction; whoever ends second closes both sockets."""
        chunks: queue.Queue[tuple[Place, float, bytes]] = queue.Queue(QUEUE_CHUNKS)

        def read() -> None:
            data = b"?"
            while data:
                try:
                    data = source.recv(self._chunk_bytes())
                except OSError:
                    data = b""
                place = lane.take(time.perf_counter(), len(data))
                chunks.put((place, self._delay_s(), data))

        def write() -> None:
            data = b"?"
            while data:
                place, delay_s, data = chunks.get()
                self._wait(lane, place, delay_s)
                try:
                    sink.sendall(data) if data else sink.shutdown(socket.SHUT_WR)
                except OSError:
                    _reset(source)
            if not ways.acquire(blocking=False):
                self._forget(source, sink)

        _spawn(read)
        _spawn(write)

    def _wait(self, lane: Lane, place: Place, delay_s: float) -> None:
        """Wait until some bytes are due at the far end, or the link is closed."""
        while (wait_s := lane.out_s(place) + delay_s - time.perf_counter()) > 0:
            if self._is_closed:
                return
            time.sleep(min(wait_s, SLICE_S))
        self._up.wait()

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._sockets -= set(ends)
        for end in ends:
            end.close()

    def _delay_s(self) -> float:
        jitter_s = self._settings.jitter_s
        return self._settings.delay_s + (self._random.uniform(0, jitter_s) if jitter_s else 0.0)

    def _chunk_bytes(self) -> int:
        rate = self._settings.rate_bps
        if rate is None:
            return CHUNK_MAX_BYTES
        return round(min(CHUNK_MAX_BYTES, max(CHUNK_MIN_BYTES, rate / 8 * CHUNK_S)))


def _spawn(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True).start()


def _reset(end: socket.socket) -> None:
    """Close with a reset instead of an end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What a link was set to and what it did.

    Args:
        settings: what was asked for.
        round_trip_s: median round trip of one small message.
        rate_bps: measured rate of a long one, None without a limit.
    """

    settings: LinkSettings
    round_trip_s: float
    rate_bps: float | None

    @property
    def problem(self) -> str | None:
        """Why figures taken over this link would be void, or None."""
        wanted_s = 2 * self.settings.delay_s
        if abs(self.round_trip_s - wanted_s) > DELAY_TOLERANCE_S:
            return f"round trip {self.round_trip_s * 1e3:.2f} ms, set to {wanted_s * 1e3:.2f} ms"
        wanted_bps = self.settings.rate_bps
        if wanted_bps and self.rate_bps:
            error = abs(self.rate_bps - wanted_bps) / wanted_bps
            if error > RATE_TOLERANCE:
                return f"rate {self.rate_bps / 1e6:.2f} Mbit/s, set to {wanted_bps / 1e6:.2f}"
        return None


def self_test(settings: LinkSettings) -> SelfTest:
    """Measure a fresh link with these settings.

    Raises:
        MeasurementError: three tries in a row were over 5 % off the rate or 1 ms off the round
            trip, so that figures taken now would be void; the machine is usually too busy.
    """
    steady = LinkSettings(settings.rate_bps, settings.delay_s)
    for _ in range(TRIES):
        result = _measure(steady)
        if result.problem is None:
            return result
    raise MeasurementError(f"the emulated link failed its self-test: {result.problem}")


def _measure(settings: LinkSettings) -> SelfTest:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _spawn(lambda: _echo_counts(server))
        with (
            Link(server.getsockname(), settings) as link,
            socket.create_connection(link.address) as client,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _probe(client, settings)


def _probe(client: socket.socket, settings: LinkSettings) -> SelfTest:
    pings = sorted(_exchange(client, 4) for _ in range(PINGS))
    round_trip_s = pings[PINGS // 2]
    if settings.rate_bps is None:
        return SelfTest(settings, round_trip_s, None)
    wire_s = round_trip_s - 2 * 8 * 4 / settings.rate_bps
    size = round(min(8e6, max(20_000, settings.rate_bps / 8 * 0.4)))
    took = sorted(_exchange(client, size) for _ in range(3))[1]
    return SelfTest(settings, wire_s, 8 * size / max(1e-9, took - round_trip_s))


def _exchange(client: socket.socket, size: int) -> float:
    """Send `size` bytes, wait for four back; the seconds it took."""
    started = time.perf_counter()
    client.sendall(struct.pack("<I", size) + bytes(size - 4))
    received = b""
    while len(received) < 4:
        received += client.recv(4 - len(received)) or b"\0\0\0\0"
    return time.perf_counter() - started


def _echo_counts(server: socket.socket) -> None:
    """Answer four bytes to every message of the size that its first four bytes state."""
    peer, _ = server.accept()
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray()
        while data := peer.recv(1 << 20):
            buffer += data
            while len(buffer) >= 4 and len(buffer) >= (size := struct.unpack_from("<I", buffer)[0]):
                del buffer[:size]
                peer.sendall(b"done")

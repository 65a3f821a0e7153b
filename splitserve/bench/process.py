"""Processes that a measurement drives from outside, over their public interfaces only."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from splitserve.errors import MeasurementError

START_S = 60.0
STOP_S = 10.0
MEASURE_S = 120.0


class Heard(NamedTuple):
    """A line that a process printed, and when it arrived (`time.perf_counter`)."""

    at_s: float
    line: dict[str, Any]


class Process:
    """One `splitserve` command that speaks JSON lines.

    A thread reads them, so that each has the time at which it arrived, whenever it is heard.

    Args:
        words: the command and its flags.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "splitserve.cli", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put((time.perf_counter(), line))
        self._lines.put((time.perf_counter(), b""))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Write one line to its standard input.

        Raises:
            MeasurementError: the process has died.
        """
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(line.encode() + b"\n")
                stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Read one JSON line from its standard output.

        Raises:
            MeasurementError: nothing came in time, or the process has died.
        """
        heard = self.listen(timeout_s)
        if heard is None:
            raise MeasurementError(f"`splitserve {self._words[0]}` said nothing in {timeout_s} s")
        return heard.line

    def listen(self, timeout_s: float) -> Heard | None:
        """Return the next JSON line, None when none came in time.

        Raises:
            MeasurementError: the process has died.
        """
        try:
            at_s, line = self._lines.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if not line:
            self._lines.put((at_s, line))  # for whoever listens next
            raise self._death()
        return Heard(at_s, json.loads(line))

    def _death(self) -> MeasurementError:
        status = self._process.wait(STOP_S)
        last = self.log().strip().splitlines()[-3:]
        return MeasurementError(
            f"`splitserve {self._words[0]}` ended with status {status}: {' | '.join(last)}"
        )

    def finish(self) -> str:
        """End its standard input, wait for its end, and return all that it logged.

        Raises:
            MeasurementError: it did not end.
        """
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"`splitserve {self._words[0]}` did not end in {STOP_S} s"
            ) from error
        return self.log()

    def log(self) -> str:
        """What it has logged so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it, gently at first."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def running(*words: str) -> Iterator[Process]:
    """Start a command; end it whatever happens, SIGTERM included."""
    with _sigterm_raises():
        process = Process(words)
        try:
            yield process
        finally:
            process.stop()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that every child is ended; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def running_service(artifact: Path, *flags: str) -> Iterator[tuple[Process, str, int]]:
    """Start a service on a free port of loopback; yields the process, its host and its port."""
    words = ("serve", "--artifact", str(artifact), "--port", "0", "--log-level", "WARNING", *flags)
    with running(*words) as process:
        url = str(process.hear(START_S)["url"])
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield process, host, int(port)


def measured(code: str, *arguments: str) -> dict[str, Any]:
    """Run Python code in a fresh process and read the JSON document it prints.

    Raises:
        MeasurementError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=MEASURE_S,
        check=False,
    )
    if done.returncode:
        raise MeasurementError(f"a measuring process failed: {done.stderr.strip()[-300:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result

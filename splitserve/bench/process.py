"""Processes that a measurement drives from outside, over their public interfaces only."""

import contextlib
import json
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from splitserve.errors import MeasurementError

START_S = 60.0
STOP_S = 10.0
MEASURE_S = 120.0


class Process:
    """One `splitserve` command that speaks JSON lines.

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
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], timeout_s)[0]:
            raise MeasurementError(f"`splitserve {self._words[0]}` said nothing in {timeout_s} s")
        line = stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> MeasurementError:
        status = self._process.wait(STOP_S)
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return MeasurementError(
            f"`splitserve {self._words[0]}` ended with status {status}: {' | '.join(last)}"
        )

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

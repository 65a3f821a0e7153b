"""Real processes over loopback, spoken to as an operator would, ended by their pids."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0


class Running:
    """One `splitserve` command; each line it prints is kept with the time of its arrival."""

    def __init__(self, log: Path, words: tuple[str, ...]) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "splitserve.cli", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self._lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put((time.perf_counter(), line))

    def say(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def say_no_more(self) -> None:
        """End its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def hear(self, timeout_s: float = START_S) -> dict[str, Any]:
        """Return the next line it prints, with the time of its arrival as `heard_at`."""
        try:
            heard_at, line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"nothing heard in {timeout_s} s; {self.log()}") from None
        return json.loads(line) | {"heard_at": heard_at}

    def hear_rest(self) -> list[dict[str, Any]]:
        """Wait for its end; return the lines not heard yet."""
        self.end()
        self._reader.join(10)
        return [self.hear() for _ in range(self._lines.qsize())]

    def end(self) -> int:
        """Wait for its end; return the exit status."""
        return self.process.wait(30)

    def log(self) -> str:
        return self._log.read_text()

    def destroy(self) -> None:
        """End it whatever it does, stopped or not."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start commands by their words."""
    started: list[Running] = []

    def begin(*words: object) -> Running:
        texts = tuple(str(word) for word in words)
        started.append(Running(tmp_path / f"{len(started)}-{texts[0]}.log", texts))
        return started[-1]

    yield begin
    for running in started:
        running.destroy()


class Cloud:
    """A service at one address, which may die, hang and come back."""

    def __init__(self, start: Callable[..., Running], artifact: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._start = start
        self._artifact = artifact
        self.url = f"http://127.0.0.1:{self._port}"
        self.running = self.come_back()

    def come_back(self) -> Running:
        """Start the service; return once it is ready."""
        words = ("--artifact", self._artifact, "--port", self._port, "--threads", 1)
        self.running = self._start("serve", *words, "--log-level", "WARNING")
        assert self.running.hear()["url"] == self.url
        return self.running

    def kill(self) -> None:
        """End it as a power cut does."""
        self.running.process.kill()
        self.running.process.wait(10)

    def hang(self) -> None:
        """Stop it with its connections open."""
        os.kill(self.running.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after `hang`."""
        os.kill(self.running.process.pid, signal.SIGCONT)


@pytest.fixture
def cloud(start: Callable[..., Running], lite0_artifact: Path) -> Cloud:
    return Cloud(start, lite0_artifact)

"""A small artifact's tail, behind a service whose work a test can hold back."""

import json
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from splitserve.artifact import Artifact, load_artifact
from splitserve.codec import References, build_codec
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.tensors import Array
from splitserve.wire import Limits, Reply, Request, Section

FRAME_LIMIT = 1024 * 1024


class GatedTail(Tail):
    """A tail whose answers wait at a gate, open at first, and may fail.

    `gates` holds requests back one by one, by request id.
    """

    def __init__(self, artifact: Artifact, chain: Chain) -> None:
        super().__init__(artifact, chain)
        self.gate = threading.Event()
        self.gate.set()
        self.gates: dict[bytes, threading.Event] = {}
        self.failure: Exception | None = None
        self.running = threading.Semaphore(0)

    def answer(
        self,
        request: Request,
        queue_s: float = 0.0,
        load: float = 0.0,
        references: References | None = None,
    ) -> Reply:
        self.running.release()
        assert self.gates.get(request.request_id, self.gate).wait(20)
        if self.failure is not None:
            raise self.failure
        return super().answer(request, queue_s, load, references)


@pytest.fixture(scope="session")
def artifact(tiny_artifact: Path) -> Artifact:
    return load_artifact(tiny_artifact)


@pytest.fixture(scope="session")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, RuntimeOptions(threads=1))


@pytest.fixture
def tail(artifact: Artifact, chain: Chain) -> GatedTail:
    return GatedTail(artifact, chain)


@pytest.fixture(scope="session")
def image(artifact: Artifact) -> dict[str, Array]:
    """One input of the model, batch 1."""
    spec = artifact.manifest.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    values = np.random.default_rng(7).normal(size=shape)
    return {spec.name: values.astype(spec.dtype)}


@pytest.fixture(scope="session")
def make_request(
    artifact: Artifact, chain: Chain, image: dict[str, Array]
) -> Callable[..., Request]:
    """Run the head up to a position and make its request."""

    def make(
        position: int = 1,
        number: int = 0,
        codec: str = "raw",
        deadline_s: float | None = None,
        batch: int = 1,
    ) -> Request:
        inputs = {name: np.repeat(values, batch, axis=0) for name, values in image.items()}
        features = chain.run(inputs, 0, position)
        used = build_codec(codec)
        if codec == "raw":
            used.exact = True
        values = [features[spec.name] for spec in artifact.manifest.egress(position)]
        return Request(
            request_id=number.to_bytes(16, "big"),
            artifact_id=artifact.id,
            cut=position,
            codec=used.number,
            sections=tuple(Section(value.shape, used.encode(value)) for value in values),
            deadline_s=deadline_s,
        )

    return make


@pytest.fixture
def service(tail: GatedTail) -> Iterator[Service]:
    scheduler = Scheduler(workers=2, waiting=2)
    yield Service(tail, scheduler, Limits(frame_bytes=FRAME_LIMIT))
    for gate in (tail.gate, *tail.gates.values()):
        gate.set()
    scheduler.close()


class Served:
    """A `splitserve serve` process; `url` and `artifact_id` are what it printed."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "splitserve.cli", "serve", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], self.log()
        said = json.loads(self.process.stdout.readline() or "{}")
        assert set(said) == {"url", "artifact_id", "model"}, self.log()
        self.url, self.artifact_id, self.model = said["url"], said["artifact_id"], said["model"]

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(40)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start services; whatever still runs at the end of the test is killed by its pid."""
    started: list[Served] = []

    def start(artifact: Path, *flags: str) -> Served:
        words = ["--artifact", str(artifact), "--port", "0", "--threads", "1", *flags]
        started.append(Served(words, tmp_path / f"serve{len(started)}.log"))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()
        served.process.wait(10)
        assert served.process.stdout is not None
        served.process.stdout.close()

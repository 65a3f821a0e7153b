"""A small artifact's head, pictures for it, and a cloud that lives in the same process."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.head import Head
from edge_agent.uplink import Heard
from splitserve.artifact import Artifact, load_artifact
from splitserve.codec import Codecs, RawCodec, References
from splitserve.picture import normalise
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.wire import Limits, Refusal, Reply, Request, Section, Timings, decode_frame

Answering = Callable[[Request], Awaitable[Reply | Refusal]]


@pytest.fixture(scope="session")
def artifact(tiny_artifact: Path) -> Artifact:
    return load_artifact(tiny_artifact)


@pytest.fixture(scope="session")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, RuntimeOptions(threads=1))


@pytest.fixture(scope="session")
def head(artifact: Artifact, chain: Chain) -> Head:
    return Head(artifact, chain)


def png(seed: int, width: int = 48, height: int = 40) -> bytes:
    """Draw noise that differs by seed, as a PNG file."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture() -> bytes:
    return png(1)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of six different pictures, p0.png to p5.png."""
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(6):
        (folder / f"p{number}.png").write_bytes(png(number))
    return folder


class FakeCloud:
    """An uplink whose far end is here: it finishes the model, or does what a test wants.

    Args:
        artifact: the artifact it holds.
        chain: its segments.
    """

    def __init__(self, artifact: Artifact, chain: Chain) -> None:
        self.artifact = artifact
        self.chain = chain
        self.requests: list[Request] = []
        self.timeouts_s: list[float] = []
        self.answering: Answering = self.finish
        self.is_closed = False
        self.connection: int | None = 1
        self.references = References()
        self._codecs = Codecs(artifact)

    async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> Heard:
        request = decode_frame(frame, Limits())
        assert isinstance(request, Request)
        assert request.request_id == request_id
        self.requests.append(request)
        self.timeouts_s.append(timeout_s)
        connection = self.connection
        return Heard(await self.answering(request), 1234, connection)

    async def finish(self, request: Request) -> Reply:
        """Answer as the service does."""
        manifest = self.artifact.manifest
        codec = self._codecs.decoder(request.codec, request.cut, request.parameter)
        tensors = {}
        specs = manifest.egress(request.cut)
        for index, (spec, section) in enumerate(zip(specs, request.sections, strict=True)):
            dtype = "uint8" if codec.takes_pixels else spec.dtype
            payload = memoryview(section.payload)
            values = codec.decode(payload, section.shape, dtype, index, self.references)
            assert manifest.preprocess is not None
            tensors[spec.name] = (
                normalise(values[0], manifest.preprocess) if codec.takes_pixels else values
            )
        outputs = await asyncio.to_thread(self.chain.run, tensors, request.cut, len(self.chain))
        exact = RawCodec(exact=True)
        return Reply(
            request_id=request.request_id,
            artifact_id=request.artifact_id,
            cut=request.cut,
            codec=exact.number,
            sections=tuple(
                Section(outputs[spec.name].shape, exact.encode(outputs[spec.name]))
                for spec in manifest.outputs
            ),
            timings=Timings(0.001, 0.002, 0.003, 0.5),
        )

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def cloud(artifact: Artifact, chain: Chain) -> FakeCloud:
    return FakeCloud(artifact, chain)

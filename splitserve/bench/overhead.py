"""`splitserve bench overhead`: what the service adds to the tail's own compute time."""

import http.client
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table
from websockets.sync.client import connect

from splitserve.artifact import Artifact
from splitserve.bench.fixture import prepared
from splitserve.bench.measure import median, p95
from splitserve.bench.process import running_service
from splitserve.codec import build_codec
from splitserve.errors import MeasurementError
from splitserve.output import print_document
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.settings import Settings
from splitserve.wire import (
    CONTENT_TYPE,
    Limits,
    Reply,
    Request,
    Section,
    decode_frame,
    encode_frame,
)

WARM_UP = 10
CASES = (("block1", "raw"), ("block1", "affine-u8"), ("block3", "raw"), ("block5", "affine-u8"))


class Options(Settings):
    """Send frames of EfficientNet-Lite0 to a service process over loopback, one at a time.

    Overhead is the client's round trip minus the tail's compute time that the reply states.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench overhead", env_prefix="SPLITSERVE_BENCH_OVERHEAD_"
    )

    requests: int = Field(default=200, ge=10)
    """Requests per case and transport."""
    build: Path = Path("build")
    """Folder that keeps the model between runs."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print."""
    _, artifact = prepared(options.build)
    console = Console(stderr=True)
    chain = open_chain(artifact, RuntimeOptions())
    cases = [(cut, codec, _sections(artifact, chain, cut, codec)) for cut, codec in CASES]
    samples: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with running_service(artifact.root) as (_, host, port):
        client = http.client.HTTPConnection(host, port, timeout=30)
        with connect(f"ws://{host}:{port}/v1/stream", compression=None, max_size=None) as stream:
            total = options.requests + WARM_UP
            for turn in track(range(total), "measuring", console=console, transient=True):
                for cut, codec, sections in cases:
                    for transport, link in (("http", client), ("stream", stream)):
                        sample = _one(_request(artifact, cut, codec, sections), link)
                        if turn >= WARM_UP:
                            samples.setdefault((cut, codec, transport), []).append(sample)
        client.close()
    _report([_row(*key, values) for key, values in samples.items()], options)
    return 0


def _sections(artifact: Artifact, chain: Chain, cut: str, codec: str) -> tuple[Section, ...]:
    """Encode the features of noise at a cut."""
    manifest = artifact.manifest
    spec = manifest.inputs[0]
    noise = np.random.default_rng(0).standard_normal(spec.concrete()).astype(np.float32)
    position = manifest.position(cut)
    features = chain.run({spec.name: noise}, 0, position)
    arrays = [features[egress.name] for egress in manifest.egress(position)]
    return tuple(Section(array.shape, build_codec(codec).encode(array)) for array in arrays)


def _request(artifact: Artifact, cut: str, codec: str, sections: tuple[Section, ...]) -> bytes:
    position, number = artifact.manifest.position(cut), build_codec(codec).number
    return encode_frame(Request(os.urandom(16), artifact.id, position, number, sections))


def _one(frame: bytes, link: Any) -> dict[str, float]:  # noqa: ANN401  # either client
    """Send one frame over either transport; the parts of its time, seconds."""
    started = time.perf_counter()
    if isinstance(link, http.client.HTTPConnection):
        link.request("POST", "/v1/infer", frame, {"content-type": CONTENT_TYPE})
        data = link.getresponse().read()
    else:
        link.send(frame)
        data = link.recv()
    took = time.perf_counter() - started
    reply = decode_frame(data, Limits())
    if not isinstance(reply, Reply):
        raise MeasurementError(f"the service refused: {reply}")
    times = reply.timings
    return {
        "bytes": len(frame),
        "total_s": took,
        "overhead_s": took - times.compute_s,
        "queue_s": times.queue_s,
        "decode_s": times.decode_s,
        "compute_s": times.compute_s,
    }


def _row(cut: str, codec: str, transport: str, samples: list[dict[str, float]]) -> dict[str, Any]:
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    overheads = columns["overhead_s"]
    return {
        "cut": cut,
        "codec": codec,
        "transport": transport,
        "requests": len(samples),
        "overhead_p95_s": p95(overheads),
        **{name: median(values) for name, values in columns.items()},
    }


def _report(rows: list[dict[str, Any]], options: Options) -> None:
    if options.as_json:
        print_document({"rows": rows})
        return
    table = Table(
        title=f"Service overhead over loopback, ms; batch 1, {options.requests} requests each"
    )
    for name in ("cut", "codec", "over"):
        table.add_column(name, no_wrap=True)
    for name in ("kB", "p50", "p95", "queue", "decode", "compute"):
        table.add_column(name, justify="right")
    for row in rows:
        times = ("overhead_s", "overhead_p95_s", "queue_s", "decode_s", "compute_s")
        table.add_row(
            row["cut"],
            row["codec"],
            row["transport"],
            f"{row['bytes'] / 1e3:.1f}",
            *(f"{row[name] * 1e3:.2f}" for name in times),
        )
    Console().print(table)

"""The real process: what it prints, how it drains, how it fails."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from splitserve.artifact import Artifact, load_artifact
from splitserve.codec import AffineCodec
from splitserve.wire import Limits, Reply, Request, Section, decode_frame, encode_frame

MakeRequest = Callable[..., Request]
Serve = Callable[..., "object"]


def run_serve(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "splitserve.cli", "serve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def heavy_request(artifact: Artifact, number: int) -> Request:
    """Pictures of zeros in a batch: a small frame, and a fifth of a second of work or more."""
    shape = (8, 3, 224, 224)
    payload = AffineCodec().encode(np.zeros(shape, np.float32))
    return Request(
        request_id=number.to_bytes(16, "big"),
        artifact_id=artifact.id,
        cut=0,
        codec=AffineCodec.number,
        sections=(Section(shape, payload),),
    )


async def accepted(client: httpx.AsyncClient) -> int:
    """Requests that the service holds or has answered."""
    text = (await client.get("/metrics")).text
    return sum(
        int(float(value))
        for value in re.findall(r"^splitserve_(?:pending|requests_total\S*) (\S+)$", text, re.M)
    )


def test_it_prints_where_it_listens_answers_and_ends_with_status_0(
    serve: Serve, tiny_artifact: Path, make_request: MakeRequest
) -> None:
    served = serve(tiny_artifact)
    assert served.url.startswith("http://127.0.0.1:")
    assert served.artifact_id == load_artifact(tiny_artifact).id.hex()
    response = httpx.post(f"{served.url}/v1/infer", content=encode_frame(make_request(1)))
    assert isinstance(decode_frame(response.content, Limits()), Reply)
    assert httpx.get(f"{served.url}/health/ready").status_code == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.end() == 0
    assert '"message": "ready"' in served.log()
    assert "Traceback" not in served.log()


def test_ctrl_c_ends_it_with_status_0(serve: Serve, tiny_artifact: Path) -> None:
    served = serve(tiny_artifact)
    served.process.send_signal(signal.SIGINT)
    assert served.end() == 0
    assert "Traceback" not in served.log()


async def test_sigterm_lets_requests_in_flight_have_their_answers(
    serve: Serve, lite0_artifact: Path
) -> None:
    served = serve(lite0_artifact)
    artifact = load_artifact(lite0_artifact)
    frames = [encode_frame(heavy_request(artifact, number)) for number in range(6)]
    url = served.url.replace("http", "ws") + "/v1/stream"
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
        connect(url, compression=None, proxy=None) as stream,
    ):
        posts = [
            asyncio.create_task(client.post("/v1/infer", content=frame)) for frame in frames[:2]
        ]
        for frame in frames[2:]:
            await stream.send(frame)
        async with asyncio.timeout(30):
            while await accepted(client) < len(frames):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        contents = [await asyncio.wait_for(stream.recv(), 60) for _ in frames[2:]]
        contents += [(await post).content for post in posts]
    answers = [decode_frame(content, Limits()) for content in contents]
    assert all(isinstance(answer, Reply) for answer in answers)
    assert {answer.request_id[-1] for answer in answers} == set(range(len(frames)))
    assert await asyncio.to_thread(served.end) == 0
    assert "Traceback" not in served.log()


def test_readiness_turns_first_and_requests_are_taken_for_the_drain_delay(
    serve: Serve, tiny_artifact: Path, make_request: MakeRequest
) -> None:
    served = serve(tiny_artifact, "--drain-delay-s", "2")
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/health/ready").status_code == 200
        served.process.send_signal(signal.SIGTERM)
        statuses = {client.get("/health/ready").status_code for _ in range(20)}
        assert 503 in statuses
        response = client.post("/v1/infer", content=encode_frame(make_request(1)))
        assert isinstance(decode_frame(response.content, Limits()), Reply)
        assert client.get("/health/live").status_code == 200
        assert "splitserve_ready 0.0" in client.get("/metrics").text
    assert served.end() == 0


def test_a_second_signal_ends_the_delay(serve: Serve, tiny_artifact: Path) -> None:
    served = serve(tiny_artifact, "--drain-delay-s", "500")
    served.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=served.url) as client:
        while client.get("/health/ready").status_code == 200:
            pass
    served.process.send_signal(signal.SIGTERM)
    assert served.end() == -signal.SIGTERM


def test_a_frame_over_the_limit_ends_no_process(serve: Serve, tiny_artifact: Path) -> None:
    served = serve(tiny_artifact, "--max-frame-bytes", "4096")
    response = httpx.post(f"{served.url}/v1/infer", content=bytes(5000))
    assert response.status_code == 413
    assert httpx.get(f"{served.url}/health/live").status_code == 200


def test_a_port_in_use_is_said_plainly(tiny_artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_serve("--artifact", str(tiny_artifact), "--port", str(port))
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_artifact_is_said_with_the_way_to_make_one(tmp_path: Path) -> None:
    done = run_serve("--artifact", str(tmp_path / "nowhere"), "--port", "0")
    assert done.returncode == 1
    assert "manifest.json: No such file or directory" in done.stderr
    assert "splitserve split" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_segment_that_was_changed_is_not_served(tiny_artifact: Path, tmp_path: Path) -> None:
    for file in tiny_artifact.iterdir():
        content = file.read_bytes()
        is_segment = file.name == "s1.onnx"
        (tmp_path / file.name).write_bytes(content[:-1] + b"\0" if is_segment else content)
    done = run_serve("--artifact", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "sha256" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--port", "0"), ("--artifact", "x", "--prot", "1")])
def test_wrong_flags_are_called_wrong(words: tuple[str, ...]) -> None:
    done = run_serve(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

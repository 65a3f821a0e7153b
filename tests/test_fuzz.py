"""The fuzzer in small, and proof that it notices what it is there to notice."""

import asyncio
import json
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from fuzz import ENDS, GROWTH_LIMIT_BYTES, MUTATIONS, LastWarning, Result, Run, fuzz, report

from edge_agent.ask import read_outputs
from edge_agent.head import Head
from splitserve.artifact import load_artifact
from splitserve.errors import SplitServeError
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.wire import Reply, Section

SCRIPT = Path(__file__).parent / "fuzz.py"
SEED = 20261121


def assert_good(result: Result) -> None:
    assert result.failure is None, report(result)
    assert result.growth_bytes <= GROWTH_LIMIT_BYTES, report(result)
    assert result.slowest_s < 1
    assert result.is_good


def test_ten_thousand_frames_are_taken_well_at_both_ends():
    result = fuzz(count=10_000, seed=SEED)
    assert_good(result)
    assert result.frames == 10_000
    assert sum(result.outcomes.values()) == 10_000 * len(ENDS)
    # Mutations that all end at the checksum would prove nothing.
    for outcome in (
        "Reply", "MALFORMED", "TOO_LARGE", "UNKNOWN_ARTIFACT", "CONTRACT", "CODEC", "REFERENCE",
    ):  # fmt: skip
        assert result.outcomes[f"cloud {outcome}"] > 20
    for outcome in ("Reply", "Refusal", "WireError", "CodecError", "ContractError"):
        assert result.outcomes[f"edge {outcome}"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_frames_are_taken_well_for_a_minute(seed: int):
    assert_good(fuzz(seconds=60, seed=seed))


def test_a_seed_makes_the_same_frames_again():
    first, again, other = fuzz(300, seed=7), fuzz(300, seed=7), fuzz(300, seed=8)
    assert decoded(first) == decoded(again)
    assert decoded(first) != decoded(other)


def decoded(result: Result) -> dict[str, int]:
    """What the decoder made of the frames; the service's answers depend on deadlines too."""
    return {name: count for name, count in result.outcomes.items() if name.startswith("decoder")}


class BadEnds:
    """Ends that fail in one way."""

    def __init__(self, way: str) -> None:
        self._way = way

    async def throw(self, end: str, data: bytes) -> str:
        if end == "cloud" and self._way == "exception":
            raise IndexError("no such thing")
        if end == "cloud" and self._way == "slow":
            time.sleep(1.01)  # noqa: ASYNC251 - blocking is what is to be noticed
        return "INTERNAL" if end == "cloud" and self._way == "internal" else "Reply"


@pytest.mark.parametrize(
    ("way", "reason"), [("exception", "IndexError"), ("slow", "took 1."), ("internal", "")]
)
def test_a_frame_that_is_taken_badly_is_reported_with_its_bytes(way: str, reason: str):
    failure = asyncio.run(Run(BadEnds(way), LastWarning()).throw(b"\x01\x02"))
    assert failure is not None
    assert (failure.end, failure.frame_hex) == ("cloud", "0102")
    assert reason in failure.reason
    bad = Result(0, 1, 1.0, {}, 0, 0.0, "", failure)
    assert not bad.is_good
    assert "frame: 0102" in report(bad)


def test_growth_over_the_limit_is_not_good():
    assert Result(0, 1, 1.0, {}, GROWTH_LIMIT_BYTES, 0.0, "", None).is_good
    assert not Result(0, 1, 1.0, {}, GROWTH_LIMIT_BYTES + 1, 0.0, "", None).is_good


def test_the_script_prints_one_json_document_and_exits_zero():
    command = [sys.executable, str(SCRIPT), "--count", "200", "--seed", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["frames"], result["seed"], result["failure"]) == (200, 3, None)


def test_every_mutation_is_thrown():
    assert len(MUTATIONS) == len(set(MUTATIONS)) == 13


def test_the_agent_refuses_a_reply_that_unpacks_to_a_batch_it_never_asked_for(tiny_artifact: Path):
    """Three kilobytes that claim two million rows of ten; the agent asked for one."""
    artifact = load_artifact(tiny_artifact)
    chain = open_chain(artifact, RuntimeOptions(threads=1))
    head = Head(artifact, chain)
    rows = 2_000_000
    content = struct.pack("<HH", 0, 0x3F80) + bytes(10 * rows)
    section = Section((rows, 10), b"\x01" + zstandard.compress(content))
    assert len(section.payload) < 4_000
    reply = Reply(bytes(16), artifact.id, 1, 2, (section,))
    tracemalloc.start()
    try:
        with pytest.raises(SplitServeError):
            read_outputs(head, reply)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()

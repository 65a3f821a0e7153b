"""Prove that step-ans codes the same bytes here as everywhere: decode and encode the golden files.

Needs the base packages and pillow. Run it where a device's processor is, or in an emulation of one,
with a checkout or an install on the path. Exits 0 when everything holds, 1 with a plain reason when
something does not.
"""

import argparse
import hashlib
import platform
import sys
import time
from pathlib import Path

import numpy as np

from splitserve.codec import FeatureTables, References, StepAnsCodec, Symbols, read_tables
from splitserve.codec.rans import LIBRARY_LOADED
from splitserve.tensors import TensorSpec

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = TensorSpec(name="features", dtype="float32", shape=("batch", 16, 4, "width"))
STEP = 512
SHAPE = (1, 16, 4, 6)
PAYLOADS = {
    "whole": ("whole", False),
    "layered": ("whole", True),
    "after": ("after", False),
    "after-layered": ("after", True),
}
BLOCKS = 128
MANY_SHA256 = "eed6fc9743b4a40bd1377854978d3ba497426efee554110f76eb592d8baf48a1"
"""Of the payloads of `many`: whole, layered, and the second frame after the first."""


class NotProvenError(Exception):
    """Something does not hold; the message says what."""


def say(text: str) -> None:
    """Tell what holds."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def read(name: str) -> bytes:
    """Read a golden file."""
    return bytes.fromhex((GOLDEN / f"codec-step-ans-{name}.hex").read_text(encoding="ascii"))


def symbols(name: str) -> Symbols:
    """Read recorded integers."""
    values = np.frombuffer(read(f"{name}.integers"), "<i2").astype(np.int32)
    return Symbols(0, STEP, values.reshape(1, 16, 6, 4))


def many(seed: str) -> Symbols:
    """Make integers of every magnitude, the same on every machine."""
    noise = np.frombuffer(hashlib.shake_128(seed.encode()).digest(3 * 64 * BLOCKS), np.uint8)
    low, high, size = noise.astype(np.int32).reshape(3, 1, 16, BLOCKS, 4)
    return Symbols(0, STEP, (high * 256 + low - 32768) >> (size % 16))


def check_golden(tables: FeatureTables, native: bool) -> int:
    """Encode the recorded integers, decode the recorded bytes; return how many files held."""
    for name, (which, layered) in PAYLOADS.items():
        codec = StepAnsCodec([tables], STEP, layered=layered, native=native)
        want, payload = symbols(which), read(name)
        if codec.pack(want, symbols("whole") if which == "after" else None) != payload:
            raise NotProvenError(f"{name}: the integers are coded by other bytes")
        references = References()
        references.keep(symbols("whole"))
        got = codec.decode(memoryview(payload), SHAPE, "float32", references=references)
        if not np.array_equal(references.find(want.tag).values, want.values):
            raise NotProvenError(f"{name}: the bytes are decoded to other integers")
        if not np.array_equal(codec.quantise(got).values, want.values):
            raise NotProvenError(f"{name}: the features are others")
    return len(PAYLOADS)


def check_many(tables: FeatureTables, native: bool) -> tuple[str, float]:
    """Code thousands of integers; return the hash of all bytes and the seconds it took."""
    first, second = many("first"), many("second")
    digest, started = hashlib.sha256(), time.perf_counter()
    for layered in (False, True):
        codec = StepAnsCodec([tables], STEP, layered=layered, native=native)
        for frame, reference in ((first, None), (second, first)):
            digest.update(codec.pack(frame, reference))
    return digest.hexdigest(), time.perf_counter() - started


def prove(need_compiled: bool) -> None:
    """Run the whole proof."""
    say(
        f"{platform.machine()}, {platform.system()}, {sys.byteorder}-endian,"
        f" Python {platform.python_version()}, numpy {np.__version__}"
    )
    if need_compiled and LIBRARY_LOADED is None:
        raise NotProvenError("there are no compiled loops here")
    (tables,) = read_tables((GOLDEN / "codec-step-ans-v1.npz").read_bytes(), [SPEC])
    if tables is None:
        raise NotProvenError("the golden tables are empty")
    for native in (True, False) if LIBRARY_LOADED else (False,):
        loops = "compiled" if native else "pure"
        count = check_golden(tables, native)
        say(f"{loops} loops: {count} golden payloads encoded and decoded exactly")
        digest, took_s = check_many(tables, native)
        if digest != MANY_SHA256:
            raise NotProvenError(f"{loops} loops code other bytes: sha256 {digest}")
        say(f"{loops} loops: {4 * 64 * BLOCKS} more integers as everywhere, {took_s:.3f} s")
    if LIBRARY_LOADED is None:
        say("compiled loops: none here")


def main() -> int:
    """Read the flags, run the proof, say what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="fail without compiled loops")
    try:
        prove(parser.parse_args().compiled)
    except NotProvenError as error:
        sys.stderr.write(f"arm64: {error}\n")
        return 1
    say(
        "arm64: proven"
        if platform.machine() in ("aarch64", "arm64")
        else "proven, but not on arm64"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

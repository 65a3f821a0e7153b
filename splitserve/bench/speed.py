"""Times whole codecs through the Python API on features of a given shape."""

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from splitserve.bench.measure import median, p95
from splitserve.calibrate import Weights, fit_tables, plain_tables
from splitserve.codec import AffineCodec, Codec, RawCodec, StepAnsCodec
from splitserve.codec.rans import LIBRARY_LOADED
from splitserve.codec.tables import OCTAVE, STEP_ZERO
from splitserve.tensors import FloatArray

STEP_SHARE = 0.75
TENSORS = 24
LOOPS_EVERY = 20
KINSHIP = 0.7


def time_codecs(shape: tuple[int, ...], rounds: int, console: Console) -> list[dict[str, Any]]:
    """Time every codec in turn, round after round; the slow Python loops every twentieth."""
    features = smooth_features((TENSORS, *shape[1:]))
    plain = plain_tables(features, axis=1)
    tables = fit_tables(features, plain, Weights(plain.gain, plain.bands))
    code = STEP_ZERO + round(OCTAVE * float(np.log2(STEP_SHARE * features.std())))
    codecs: list[tuple[str, Codec, int]] = [
        ("raw", RawCodec(), 1),
        ("affine-u8", AffineCodec(), 1),
        ("step-ans, Python loops", StepAnsCodec([tables], code, native=False), LOOPS_EVERY),
    ]
    if LIBRARY_LOADED:
        codecs.insert(2, ("step-ans, compiled", StepAnsCodec([tables], code), 1))
    seen: dict[str, list[tuple[int, float, float]]] = {name: [] for name, *_ in codecs}
    for turn in track(range(rounds), f"{shape}", console=console, transient=True):
        tensor = features[turn % TENSORS][None]
        for name, codec, every in codecs:
            if turn % every == 0:
                seen[name].append(_once(codec, tensor))
    elements = int(np.prod(shape))
    return [{"elements": elements, "coder": name} | _figures(own) for name, own in seen.items()]


def _once(codec: Codec, tensor: FloatArray) -> tuple[int, float, float]:
    started = time.perf_counter()
    payload = codec.encode(tensor)
    encoded = time.perf_counter()
    codec.decode(memoryview(payload), tensor.shape, "float32")
    return len(payload), encoded - started, time.perf_counter() - encoded


def _figures(seen: list[tuple[int, float, float]]) -> dict[str, Any]:
    sizes, encode_s, decode_s = zip(*seen, strict=True)
    return {"bytes_mean": round(float(np.mean(sizes)), 1)} | time_figures(encode_s, decode_s)


def time_figures(encode_s: Any, decode_s: Any) -> dict[str, Any]:  # noqa: ANN401
    """Median and p95 in milliseconds, and of how many."""
    times = (("encode", encode_s), ("decode", decode_s))
    figures = (("median", median), ("p95", p95))
    return {
        f"{what}_ms_{label}": round(1e3 * figure(values), 3)
        for what, values in times
        for label, figure in figures
    } | {"rounds": len(encode_s)}


def smooth_features(shape: tuple[int, ...]) -> FloatArray:
    """Noise whose neighbours correlate by 0.7 along a map's sides, its channels mixed."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(shape)
    for axis in (2, 3):
        along = np.moveaxis(noise, axis, 0)
        for index in range(1, len(along)):
            along[index] = KINSHIP * along[index - 1] + np.sqrt(1 - KINSHIP**2) * along[index]
    mixing = generator.standard_normal((shape[1], shape[1])) / np.sqrt(shape[1])
    mixed = mixing @ noise.reshape(*shape[:2], -1)
    return np.asarray(mixed.reshape(shape), np.float32)

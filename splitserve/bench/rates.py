"""Sends pictures through codecs and notes bytes, agreement and time."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from splitserve.agreement import judge_of
from splitserve.artifact import Artifact
from splitserve.bench.measure import median, p95
from splitserve.bench.order0 import Order0
from splitserve.calibrate import (
    Inputs,
    best_class,
    channel_axis,
    estimate,
    frame_bytes,
    model_input,
)
from splitserve.codec import (
    Codec,
    Codecs,
    StepAnsCodec,
    build_codec,
    coarse_part,
    read_tables,
)
from splitserve.defence import defend
from splitserve.picture import Pixels
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.tensors import Array, Tensors

STEP_SHARES = (0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
CODES_BETWEEN = 3
CODES_BEYOND = 6
BOUND_INPUTS = 20


class CoarseLayer:
    """What a sender whose time is up sends of a layered payload: the coarse layer alone."""

    name: ClassVar[str] = StepAnsCodec.name
    number: ClassVar[int] = StepAnsCodec.number
    takes_pixels: ClassVar[bool] = False

    def __init__(self, codec: StepAnsCodec) -> None:
        self._codec = codec.at(codec.parameter, layered=True)
        self.parameter = codec.parameter
        self.decode = self._codec.decode

    def encode(self, tensor: Array, index: int = 0) -> bytes:
        """Encode both layers, and keep the first."""
        return coarse_part(self._codec.encode(tensor, index))


@dataclass(slots=True)
class Setting:
    """One way to send something, and what was seen of it.

    Args:
        codec: its name.
        value: quality, step code, or share of the standard deviation.
        coder: the codec, or the entropy bound.
    """

    codec: str
    value: str
    coder: Codec | Order0
    sizes: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    gains: list[int] = field(default_factory=list)
    """Per labelled picture: 1 newly right, -1 newly wrong, 0 the same."""

    def row(self, cut: str) -> dict[str, Any]:
        """What was seen, as figures."""
        if isinstance(self.coder, Order0):
            self.sizes = self.coder.sizes()
        agreement = estimate(self.hits)
        times = {
            f"{name}_ms_{label}": round(1e3 * figure(values), 4)
            for name, values in (("encode", self.encode_s), ("decode", self.decode_s))
            for label, figure in (("median", median), ("p95", p95))
            if values
        }
        return {
            "cut": cut,
            "codec": self.codec,
            "setting": self.value,
            "bytes_mean": round(float(np.mean(self.sizes)), 1),
            "bytes_p95": round(p95(self.sizes), 1),
            "agreement": agreement.value,
            "agreement_low": agreement.low,
            "agreement_high": agreement.high,
            **top1_change(self.gains),
            **times,
        }


class Meter:
    """Sends every picture through every setting of one cut, one after the other."""

    def __init__(self, artifact: Artifact, inputs: Inputs) -> None:
        self._artifact, self._inputs = artifact, inputs
        self._chain = open_chain(artifact, RuntimeOptions(threads=1))
        self._judge = judge_of(artifact.manifest)
        self._wanted = [self._tail(self._input(pixels), 0) for pixels in inputs.pixels]

    def measure(
        self, name: str, qualities: Sequence[int], console: Console
    ) -> list[dict[str, Any]]:
        """Measure every setting at one position."""
        position = self._artifact.manifest.position(name)
        self._judge = judge_of(self._artifact.manifest, position)
        settings = self._settings(position, qualities)
        pictures = enumerate(self._inputs.pixels)
        count = len(self._inputs.pixels)
        for index, pixels in track(pictures, escape(name), count, console=console, transient=True):
            tensors = dict(self._chain.run(self._input(pixels), 0, position))
            for setting in settings:
                if isinstance(setting.coder, Order0):
                    decoded = self._bound(setting.coder, tensors, position)
                elif setting.coder.takes_pixels:
                    carried = [pixels[None]]
                    (decoded_pixels,) = self._carry(setting, carried, ["uint8"], position)
                    decoded = self._input(decoded_pixels[0])
                else:
                    specs = self._artifact.manifest.egress(position)
                    defence = self._artifact.manifest.defence(position)
                    values = defend(defence, [tensors[spec.name] for spec in specs])
                    kinds = [spec.dtype for spec in specs]
                    given = self._carry(setting, values, kinds, position)
                    decoded = {spec.name: v for spec, v in zip(specs, given, strict=True)}
                self._judge_answer(setting, self._tail(decoded, position), index)
        return [setting.row(name) for setting in settings]

    def _settings(self, position: int, qualities: Sequence[int]) -> list[Setting]:
        if position == 0:
            return [
                Setting(name, str(quality), build_codec(name, quality))
                for name in ("jpeg", "webp")
                for quality in qualities
            ]
        codecs = Codecs(self._artifact)
        settings = [Setting(name, "", build_codec(name)) for name in ("raw", "affine-u8")]
        calibration = self._artifact.manifest.cuts[position - 1].calibration
        found = {rate.parameter for rate in calibration.rates} if calibration else set()
        between = range(min(found), max(found) + CODES_BEYOND, CODES_BETWEEN) if found else ()
        for code in sorted(found.union(between)):
            codec = codecs.step_codec(position, code)
            settings.append(Setting("step-ans", str(code), codec))
            if code in found:
                settings.append(Setting("coarse", str(code), CoarseLayer(codec)))
        return settings + self._bounds(position)

    def _bounds(self, position: int) -> list[Setting]:
        (spec, *others) = egress = self._artifact.manifest.egress(position)
        if others:
            return []
        content = self._artifact.read_tables(position)
        tables = read_tables(content, egress)[0] if content else None
        axis = int(tables.axis) if tables else channel_axis(spec, channels_last=False)
        some = [
            self._chain.run(self._input(pixels), 0, position)[spec.name]
            for pixels in self._inputs.pixels[:BOUND_INPUTS]
        ]
        spread = float(np.std(some))
        return [Setting("order-0", f"{s:g} sd", Order0(s * spread, axis)) for s in STEP_SHARES]

    def _bound(self, coder: Order0, tensors: Tensors, position: int) -> Tensors:
        name = self._artifact.manifest.egress(position)[0].name
        return {name: coder.through(tensors[name])}

    def _carry(
        self, setting: Setting, values: Sequence[Array], kinds: Sequence[str], position: int
    ) -> list[Array]:
        """Encode and decode the tensors of one request; note bytes and seconds."""
        codec = setting.coder
        if isinstance(codec, Order0):
            raise TypeError("a bound carries nothing")
        started = time.perf_counter()
        payloads = [codec.encode(value, index) for index, value in enumerate(values)]
        encoded = time.perf_counter()
        decoded = [
            codec.decode(memoryview(payload), value.shape, kind, index)
            for index, (payload, value, kind) in enumerate(
                zip(payloads, values, kinds, strict=True)
            )
        ]
        setting.decode_s.append(time.perf_counter() - encoded)
        setting.encode_s.append(encoded - started)
        setting.sizes.append(frame_bytes(position, codec, values, payloads))
        return decoded

    def _judge_answer(self, setting: Setting, got: Tensors, index: int) -> None:
        wanted = self._wanted[index]
        setting.hits.append(self._judge.agrees(got, wanted))
        if self._inputs.labels:
            name, label = self._judge.outputs[0], self._inputs.labels[index]
            before, after = (best_class(answer[name]) == label for answer in (wanted, got))
            setting.gains.append(int(after) - int(before))

    def _input(self, pixels: Pixels) -> Tensors:
        return model_input(pixels, self._artifact.manifest)

    def _tail(self, tensors: Tensors, position: int) -> Tensors:
        return dict(self._chain.run(tensors, position, len(self._chain)))


def top1_change(gains: Sequence[int]) -> dict[str, float]:
    """Change of top-1 in points with its 95 % interval, from pairs."""
    if not gains:
        return {}
    mean = 100 * float(np.mean(gains))
    half = 196 * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    return {
        "top1_change": round(mean, 2),
        "top1_change_low": round(mean - half, 2),
        "top1_change_high": round(mean + half, 2),
    }

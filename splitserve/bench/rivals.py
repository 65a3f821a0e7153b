"""What else could code the integers of `step-ans`: other coders, and bounds."""

import heapq
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from splitserve.bench.lanes import decode_lanes, encode_lanes
from splitserve.codec import FeatureTables
from splitserve.codec.predict import Predictor
from splitserve.codec.rans import (
    LIBRARY_LOADED,
    REACH,
    TOTAL_BITS,
    Ints,
    Mode,
    Model,
    decode_values,
    encode_values,
)

DICTIONARY_BYTES = 16_384
CONTEXT_EDGES = (0.25, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5)
NEIGHBOURS = ((1, 0), (2, 0), (3, 0), (0, 1))

Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class Coder:
    """A way to code integers.

    Args:
        name: for the table.
        size: bytes of what `encode` gave; of the integers themselves for a bound.
        encode: None for a bound.
        decode: of what `encode` gave.
    """

    name: str
    size: Callable[[Any], float]
    encode: Callable[[Ints], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    sizes: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


class Rivals:
    """Builds the coders for one tensor at one step.

    Args:
        training: integers of other pictures, (1, K, blocks, B) each.
        tables: the tensor's tables.
        parameter: the step's code.
    """

    def __init__(self, training: Sequence[Ints], tables: FeatureTables, parameter: int) -> None:
        self._training = training
        shape = training[0].shape
        self._alone = Predictor(tables, parameter).alone(shape[0], shape[2])
        self._order = np.argsort(self._alone.classes, kind="stable")
        shifts = self._alone.model.shifts.astype(np.int32)
        self._shifts = shifts
        self._halves = np.where(shifts > 0, 1 << np.maximum(shifts - 1, 0), 0)
        self._stored_bytes = float(shifts.sum()) / 8
        # The same tables for the bits above those that are stored as they are.
        self._model = self._alone.model._replace(shifts=np.zeros_like(self._alone.model.shifts))

    def all(self) -> list[Coder]:
        """Every coder and bound, the codec's own first."""
        probabilities = np.diff(self._model.cumulative.astype(float)) / (1 << TOTAL_BITS)
        dictionary = zstandard.train_dictionary(
            DICTIONARY_BYTES, [self._grouped(values) for values in self._training]
        )
        return [
            *([self._own("step-ans, compiled", native=True)] if LIBRARY_LOADED else []),
            self._own("step-ans, Python loops", native=False),
            self._bound("ideal of its tables", -np.log2(probabilities)),
            Coder("ideal, neighbours as context", self._context()),
            self._lanes(32),
            self._lanes(128),
            self._bound("Huffman per table (ideal)", huffman_lengths(self._model)),
            self._zstd("zstd-3, bytes", self._plain, 3),
            self._zstd("zstd-19, bytes", self._plain, 19),
            self._zstd("zstd-3, grouped", self._grouped, 3),
            self._zstd("zstd-19, grouped", self._grouped, 19),
            self._zstd("zstd-19, grouped, dictionary", self._grouped, 19, dictionary),
            Coder(
                "LZMA, grouped",
                len,
                lambda values: lzma.compress(self._grouped(values), preset=9),
                lzma.decompress,
            ),
        ]

    def _coded(self, values: Ints) -> Ints:
        return values.reshape(-1)[self._alone.places]

    def _high(self, values: Ints) -> Ints:
        """What is left of the coded values above the stored bits, within the tables' reach."""
        moved = (self._coded(values) + self._halves) >> self._shifts
        return np.asarray(moved.clip(-REACH, REACH), np.int32)

    def _plain(self, values: Ints) -> bytes:
        return values.clip(-128, 127).astype(np.int8).tobytes()

    def _grouped(self, values: Ints) -> bytes:
        return self._coded(values)[self._order].clip(-128, 127).astype(np.int8).tobytes()

    def _own(self, name: str, *, native: bool) -> Coder:
        model = self._alone.model

        def encode(values: Ints) -> bytes:
            return encode_values(self._coded(values), model, Mode.WHOLE, native=native)

        def decode(coded: bytes) -> Ints:
            return decode_values(memoryview(coded), model, Mode.WHOLE, native=native)

        return Coder(name, len, encode, decode)

    def _lanes(self, count: int) -> Coder:
        return Coder(
            f"rANS in numpy, {count} lanes",
            lambda words: sum(part.nbytes for part in words) + self._stored_bytes,
            lambda values: encode_lanes(self._high(values), self._model, count),
            lambda words: decode_lanes(words, self._model, count),
        )

    def _zstd(
        self,
        name: str,
        take: Callable[[Ints], bytes],
        level: int,
        dictionary: zstandard.ZstdCompressionDict | None = None,
    ) -> Coder:
        packer = zstandard.ZstdCompressor(level=level, dict_data=dictionary)
        unpacker = zstandard.ZstdDecompressor(dict_data=dictionary)
        return Coder(name, len, lambda values: packer.compress(take(values)), unpacker.decompress)

    def _bound(self, name: str, lengths: Doubles) -> Coder:
        """Bytes by the length in bits of every value of every table."""

        def size(values: Ints) -> float:
            bits = lengths[self._model.tables, self._high(values) + REACH].sum()
            return float(bits) / 8 + self._stored_bytes

        return Coder(name, size)

    def _context(self) -> Callable[[Ints], float]:
        """Ideal bytes when a table also depends on how large the neighbours were.

        The neighbours are the three stronger channels at the same frequency and the frequency
        before: magnitudes over what is usual there, nine contexts a class, learned in training.
        """
        classes = self._alone.classes.astype(int)
        usual = np.maximum(np.abs(np.concatenate(self._training)).mean(axis=0), 1e-3)
        shape = (classes.max() + 1, len(CONTEXT_EDGES) + 1, 2 * REACH + 1)
        counts = np.full(shape, 0.02)
        places = self._alone.places

        def contexts(values: Ints) -> npt.NDArray[np.intp]:
            return np.digitize(_neighbours(values, usual).reshape(-1)[places], CONTEXT_EDGES)

        for values in self._training:
            np.add.at(counts, (classes, contexts(values), self._high(values) + REACH), 1)
        lengths = -np.log2(counts / counts.sum(axis=2, keepdims=True))

        def size(values: Ints) -> float:
            bits = lengths[classes, contexts(values), self._high(values) + REACH].sum()
            return float(bits) / 8 + self._stored_bytes

        return size


def _neighbours(values: Ints, usual: Doubles) -> Doubles:
    """Magnitude of each coefficient's neighbours over the usual one: (1, K, blocks, B)."""
    seen, expected = np.zeros(values.shape), np.zeros(values.shape)
    for channels, bands in NEIGHBOURS:
        count, size = values.shape[1] - channels, values.shape[3] - bands
        there = (slice(None), slice(channels, None), slice(None), slice(bands, None))
        seen[there] += np.abs(values[:, :count, :, :size])
        expected[there] += usual[None, :count, :, :size]
    return np.asarray((seen + 0.5) / (expected + 0.5))


def huffman_lengths(model: Model) -> Doubles:
    """Length of every value's code in one Huffman code per table: (tables, 32), bits."""
    counts = np.diff(model.cumulative.astype(int))
    lengths = np.zeros(counts.shape)
    for row, own in enumerate(counts):
        heap = [(int(count), value, [value]) for value, count in enumerate(own)]
        heapq.heapify(heap)
        while len(heap) > 1:
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            merged = first[2] + second[2]
            lengths[row, merged] += 1
            heapq.heappush(heap, (first[0] + second[0], first[1], merged))
    return lengths

"""The entropy coder: both loops make and read the same bytes, and nothing hostile gets further."""

import ast
import ctypes
import math
import random
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.calibrate.fit import cumulative_tables
from splitserve.codec import rans
from splitserve.codec.rans import (
    ESCAPE,
    LIBRARY_LOADED,
    REACH,
    SHIFT_MAX,
    TOTAL_BITS,
    VALUE_MAX,
    Ints,
    Mode,
    Model,
    decode_values,
    encode_values,
)
from splitserve.errors import CodecError

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "hatch_build.py"
NATIVES = [True, False]
needs_library = pytest.mark.skipif(
    LIBRARY_LOADED is None, reason="no compiled loops here: there was no C compiler at installation"
)

VALUES = st.one_of(
    st.integers(-3, 3),
    st.integers(-REACH - 2, REACH + 2),
    st.integers(-VALUE_MAX, VALUE_MAX),
    st.sampled_from([VALUE_MAX, -VALUE_MAX, 527, 528, -16, 16, 32767, -32767]),
)
SHIFTS = st.one_of(st.just(0), st.integers(0, SHIFT_MAX))
NAMED = st.sampled_from(["flat", "narrow", "far", "fitted"])


def table(name: str, seed: int) -> list[int]:
    """One row of cumulative frequencies, 0 to 2^14."""
    total = 1 << TOTAL_BITS
    if name == "flat":
        inner = np.sort(np.random.default_rng(seed).choice(total - 1, ESCAPE, replace=False)) + 1
        return [0, *inner.tolist(), total]
    if name == "narrow":  # everything on one value, the least there is for the others
        at = seed % (ESCAPE + 1)
        return [value if value <= at else total - ESCAPE - 1 + value for value in range(ESCAPE + 2)]
    if name == "far":  # everything on the escape
        return [*range(ESCAPE + 1), total]
    return cumulative_tables(0.7 + seed % 150 / 100)[seed % 144].tolist()


@st.composite
def streams(draw: st.DrawFn) -> tuple[Ints, Model]:
    """Values with tables of every kind and every shift."""
    rows = draw(st.lists(st.tuples(NAMED, st.integers(0, 999)), min_size=1, max_size=4))
    entry = st.tuples(VALUES, st.integers(0, len(rows) - 1), SHIFTS)
    values, tables, shifts = np.array(draw(st.lists(entry, max_size=40)), int).reshape(-1, 3).T
    return values.astype(np.int32), Model(
        tables.astype(np.uint8),
        shifts.astype(np.uint8),
        np.array([table(*row) for row in rows], np.uint16),
    )


def sampled(count: int, seed: int = 0) -> tuple[Ints, Model]:
    """Values that are as probable as their tables say."""
    generator = np.random.default_rng(seed)
    cumulative = cumulative_tables(1.2)
    tables = generator.integers(0, len(cumulative), count).astype(np.uint8)
    slots = generator.integers(0, 1 << TOTAL_BITS, count)
    symbols = (cumulative[tables] <= slots[:, None]).sum(axis=1) - 1
    far = generator.integers(REACH + 1, 4 * REACH, count) * generator.choice([-1, 1], count)
    values = np.where(symbols == ESCAPE, far, symbols - REACH).astype(np.int32)
    return values, Model(tables, np.zeros(count, np.uint8), cumulative)


def read(stream: bytes, model: Model, mode: Mode, coarse: Ints | None, native: bool) -> Any:
    """Values, or None where they are refused."""
    try:
        return decode_values(memoryview(stream), model, mode, coarse, native=native).tolist()
    except CodecError:
        return None


# Round trips


@given(streams())
@pytest.mark.parametrize("native", NATIVES)
def test_whole_values_come_back(native: bool, stream: tuple[Ints, Model]):
    values, model = stream
    coded = encode_values(values, model, Mode.WHOLE, native=native)
    got = decode_values(memoryview(coded), model, Mode.WHOLE, native=native)
    assert got.dtype == np.int32
    assert got.tolist() == values.tolist()


@given(streams())
@pytest.mark.parametrize("native", NATIVES)
def test_a_fine_layer_restores_what_the_coarse_one_left_out(
    native: bool, stream: tuple[Ints, Model]
):
    values, model = stream
    layers = [encode_values(values, model, mode, native=native) for mode in (1, 2)]
    coarse = decode_values(memoryview(layers[0]), model, Mode.COARSE, native=native)
    got = decode_values(memoryview(layers[1]), model, Mode.FINE, coarse, native=native)
    assert got.tolist() == values.tolist()


@given(streams())
def test_a_coarse_value_is_half_of_the_value_towards_zero(stream: tuple[Ints, Model]):
    values, model = stream
    coded = encode_values(values, model, Mode.COARSE)
    coarse = decode_values(memoryview(coded), model, Mode.COARSE)
    half = np.where(model.shifts > 0, 1 << np.maximum(model.shifts.astype(int) - 1, 0), 0)
    moved = (values + half) >> 1
    assert coarse.tolist() == np.where(model.shifts > 0, moved, np.fix(values / 2)).tolist()


def test_decoding_leaves_the_coarse_values_as_they_were():
    values, model = sampled(50)
    coarse = decode_values(memoryview(encode_values(values, model, Mode.COARSE)), model, Mode(1))
    before = coarse.copy()
    decode_values(memoryview(encode_values(values, model, Mode.FINE)), model, Mode.FINE, coarse)
    assert coarse.tolist() == before.tolist()


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("mode", Mode)
def test_nothing_is_four_bytes(mode: Mode, native: bool):
    nothing, model = sampled(0)
    coded = encode_values(nothing, model, mode, native=native)
    assert coded == b"\x01\x00\x00\x00"
    got = decode_values(memoryview(coded), model, mode, native=native)
    assert (got.shape, got.dtype) == ((0,), np.int32)


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("shift", range(SHIFT_MAX + 1))
def test_the_largest_values_come_back_at_every_shift(shift: int, native: bool):
    values = np.array([VALUE_MAX, -VALUE_MAX, 32767, -32768, 0, -1, 1], np.int32)
    model = Model(
        np.arange(len(values), dtype=np.uint8) * 20,
        np.full(len(values), shift, np.uint8),
        cumulative_tables(1.0),
    )
    coded = encode_values(values, model, Mode.WHOLE, native=native)
    got = decode_values(memoryview(coded), model, Mode.WHOLE, native=native)
    assert got.tolist() == values.tolist()


# Both loops


@needs_library
@given(streams())
def test_both_loops_make_the_same_bytes(stream: tuple[Ints, Model]):
    values, model = stream
    for mode in Mode:
        native, pure = (encode_values(values, model, mode, native=native) for native in NATIVES)
        assert native.hex() == pure.hex()


@needs_library
@given(streams())
def test_each_loop_reads_what_the_other_made(stream: tuple[Ints, Model]):
    values, model = stream
    for native in NATIVES:
        whole, coarse, fine = (
            encode_values(values, model, mode, native=not native) for mode in Mode
        )
        assert read(whole, model, Mode.WHOLE, None, native) == values.tolist()
        first = decode_values(memoryview(coarse), model, Mode.COARSE, native=native)
        assert read(fine, model, Mode.FINE, first, native) == values.tolist()


@needs_library
@given(st.binary(min_size=0, max_size=40), streams(), st.sampled_from(Mode))
def test_both_loops_judge_noise_alike(noise: bytes, stream: tuple[Ints, Model], mode: Mode):
    coarse, model = stream
    native, pure = (
        read(noise, model, mode, coarse // 2 if mode == Mode.FINE else None, native)
        for native in NATIVES
    )
    assert native == pure


@needs_library
@given(streams(), st.sampled_from(Mode), st.integers(0, 2**32))
def test_both_loops_judge_a_damaged_stream_alike(stream: tuple[Ints, Model], mode: Mode, seed: int):
    values, model = stream
    coarse = decode_values(memoryview(encode_values(values, model, Mode(1))), model, Mode(1))
    damaged = bytearray(encode_values(values, model, mode))
    damaged[seed % len(damaged)] ^= 1 << seed // 7 % 8
    native, pure = (
        read(bytes(damaged), model, mode, coarse if mode == Mode.FINE else None, native)
        for native in NATIVES
    )
    assert native == pure
    assert native is None or len(native) == len(values)


@needs_library
def test_both_loops_make_the_same_bytes_of_many_values():
    values, model = sampled(30_000)
    for mode in Mode:
        native, pure = (encode_values(values, model, mode, native=native) for native in NATIVES)
        assert native == pure


def build_constants() -> dict[str, Any]:
    """The literals of hatch_build.py, without the build backend that it imports."""
    tree = ast.parse(BUILD.read_text(encoding="utf-8"))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def test_the_build_hook_compiles_loops_that_make_the_same_bytes(tmp_path: Path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    build, target = build_constants(), tmp_path / "_rans.so"
    command = [compiler, *build["FLAGS"], "-Wall", "-Wextra", "-Werror", "-o", str(target)]
    subprocess.run([*command, str(ROOT / build["SOURCE"])], check=True)
    assert ROOT / build["LIBRARY"] == rans.LIBRARY
    library = ctypes.CDLL(str(target))
    assert library.rans_version() == rans.VERSION
    library.rans_encode.restype = ctypes.c_int64
    values, model = sampled(500)
    for mode in Mode:
        pure = encode_values(values, model, mode, native=False)
        assert rans._encode_native(library, values, model, mode) == pure


def test_the_compiled_loops_stay_within_their_arrays(tmp_path: Path):
    """A short program runs the worst that there is under the compiler's own checks."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source, program = tmp_path / "checked.c", tmp_path / "checked"
    source.write_text(CHECKED.replace("SOURCE", str(ROOT / "splitserve" / "codec" / "rans.c")))
    command = [compiler or "gcc", *flags, "-o", str(program), str(source)]
    if compiler is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no C compiler with sanitizers here")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


CHECKED = """
#include <stdlib.h>
#include "SOURCE"
enum { N = 64 };
static uint32_t seed = 1;
static uint32_t noise(void) { return (seed = seed * 1664525u + 1013904223u) >> 8; }
int main(void) {
    for (int turn = 0; turn < 20000; turn++) {
        int words = noise() % 40, mode = noise() % 3;
        uint16_t *stream = malloc(2 * words + 1), *room = malloc(2 * (4 * N + 4));
        uint16_t *cum = malloc(2 * 33 * 2);
        uint8_t *tables = malloc(N), *shifts = malloc(N);
        int32_t *values = malloc(4 * N);
        for (int i = 0; i < 2 * 33; i++)
            cum[i] = i % 33 == 32 ? 16384 : i % 33 * (i < 33 ? 1 : turn % 512 + 1);
        for (int i = 0; i < words; i++) stream[i] = (uint16_t)noise();
        for (int i = 0; i < N; i++) {
            tables[i] = noise() % 2;
            shifts[i] = noise() % 2 ? 0 : noise() % 15;
            values[i] = (int32_t)(noise() % 524287) - 262143;
        }
        if (rans_encode(values, tables, shifts, N, cum, mode, room, 4 * N + 4) < 2) return 1;
        rans_decode(stream, words, tables, shifts, N, cum, mode, values);
        free(stream); free(room); free(cum); free(tables); free(shifts); free(values);
    }
    return 0;
}
"""


# Length


def ideal_bytes(values: Ints, model: Model) -> float:
    """Bytes that the tables promise, escapes with their own bits."""
    symbols = np.where(np.abs(values) <= REACH, values + REACH, ESCAPE)
    rows = model.cumulative[model.tables].astype(np.int64)
    places = np.arange(len(values))
    widths = rows[places, symbols + 1] - rows[places, symbols]
    beyond = np.abs(values[symbols == ESCAPE]) - REACH - 1
    escapes = sum(6 + int(rest).bit_length() for rest in beyond)
    return (float((TOTAL_BITS - np.log2(widths)).sum()) + escapes) / 8


@pytest.mark.parametrize("count", [0, 1, 10, 1000, 50_000])
def test_a_stream_is_as_short_as_its_tables_promise(count: int):
    values, model = sampled(count)
    ideal = ideal_bytes(values, model)
    assert len(encode_values(values, model, Mode.WHOLE)) <= ideal * 1.001 + 8


@pytest.mark.parametrize("count", [0, 1, 1000, 50_000])
def test_two_layers_are_as_short_as_one_stream(count: int):
    values, model = sampled(count)
    whole, coarse, fine = (len(encode_values(values, model, mode)) for mode in Mode)
    assert coarse + fine <= whole * 1.001 + 8
    assert count < 1000 or coarse < 0.9 * whole


def test_a_likely_value_costs_next_to_nothing():
    row = table("narrow", REACH)
    model = Model(np.zeros(10_000, np.uint8), np.zeros(10_000, np.uint8), np.array([row], "u2"))
    bits = -math.log2((row[REACH + 1] - row[REACH]) / (1 << TOTAL_BITS))
    assert (
        len(encode_values(np.zeros(10_000, np.int32), model, Mode.WHOLE)) <= 10 + bits * 10_000 / 8
    )


# Refusals


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 99])
def test_a_stream_of_an_impossible_length_is_refused(size: int, native: bool):
    with pytest.raises(CodecError, match=f"stream of {size} bytes"):
        decode_values(memoryview(bytes(size)), sampled(3)[1], Mode.WHOLE, native=native)


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("mode", Mode)
def test_a_truncated_stream_is_refused(mode: Mode, native: bool):
    values, model = sampled(200)
    coded = encode_values(values, model, mode)
    coarse = decode_values(memoryview(encode_values(values, model, Mode(1))), model, Mode(1))
    for size in range(0, len(coded), 2):
        with pytest.raises(CodecError):
            decode_values(memoryview(coded[:size]), model, mode, coarse, native=native)


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("more", [b"\0\0", b"\x01\x00", bytes(100), b"\0", b"abc"])
@pytest.mark.parametrize("count", [0, 200])
def test_appended_bytes_are_refused(count: int, more: bytes, native: bool):
    values, model = sampled(count)
    coded = encode_values(values, model, Mode.WHOLE)
    with pytest.raises(CodecError):
        decode_values(memoryview(coded + more), model, Mode.WHOLE, native=native)


@pytest.mark.parametrize("native", NATIVES)
def test_a_stream_for_other_counts_is_refused(native: bool):
    values, model = sampled(200)
    coded = encode_values(values, model, Mode.WHOLE)
    for count in (0, 100, 150, 190):
        other = Model(model.tables[:count], model.shifts[:count], model.cumulative)
        with pytest.raises(CodecError):
            decode_values(memoryview(coded), other, Mode.WHOLE, native=native)


@pytest.mark.parametrize("native", NATIVES)
def test_nearly_every_flipped_bit_is_noticed(native: bool):
    """The state must end where it began, which a changed stream does once in about 2^16."""
    values, model = sampled(300)
    coded = encode_values(values, model, Mode.WHOLE)
    generator, missed = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(coded)
        damaged[generator.randrange(len(coded))] ^= 1 << generator.randrange(8)
        missed += read(bytes(damaged), model, Mode.WHOLE, None, native) is not None
    assert missed <= 1


@pytest.mark.parametrize("native", NATIVES)
def test_an_escape_of_more_bits_than_there_are_is_refused(native: bool):
    """Every length from 19 to 31 is a stream that no encoder makes."""
    row = table("far", 0)
    model = Model(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.array([row], np.uint16))
    for bits in range(19, 32):
        writer = rans._Writer()
        writer.put_raw(bits, rans.ESCAPE_LENGTH_BITS)
        writer.put_raw(0, 1)
        writer.put(row[ESCAPE], row[ESCAPE + 1])
        with pytest.raises(CodecError, match="problem 4"):
            decode_values(memoryview(writer.close()), model, Mode.WHOLE, native=native)


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("size", [4, 64, 100_000])
def test_decoding_takes_memory_by_the_count_and_the_stream_alone(size: int, native: bool):
    _, model = sampled(1000)
    noise = memoryview(np.random.default_rng(0).bytes(size))
    tracemalloc.start()
    try:
        for _ in range(3):
            read(noise, model, Mode.WHOLE, None, native)
        assert tracemalloc.get_traced_memory()[1] < 400_000 + 40 * size
    finally:
        tracemalloc.stop()

"""`step-ans` from outside: what comes back, how far off it is, and what hostile payloads do."""

import contextlib
import random
import struct
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from features import correlated, moving_tables, tables_for
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec import References, StepAnsCodec, Symbols, Transform, coarse_part, step_size
from splitserve.codec.rans import Mode, encode_values
from splitserve.codec.step import COARSE, LAYERED, STORED, SYMBOL_MAX, WHOLE
from splitserve.codec.tables import STEP_CODES, STEP_ZERO
from splitserve.errors import CodecError, ReferenceMissingError
from splitserve.tensors import DTYPES, Array

SHAPE = (1, 5, 8, 8)
TABLES = moving_tables(correlated((40, *SHAPE[1:])))
TENSOR = correlated(SHAPE, 1)
PARAMETER = STEP_ZERO - 16  # a quarter
STEP = 0.25
CODEC = StepAnsCodec([TABLES], PARAMETER)
LAYERS = StepAnsCodec([TABLES], PARAMETER, layered=True)
STORED_DTYPES = [name for name in DTYPES if name not in ("float16", "float32", "float64")]


def read(
    codec: StepAnsCodec,
    payload: bytes,
    references: References | None = None,
    dtype: str = "float32",
) -> Array:
    return codec.decode(memoryview(payload), SHAPE, dtype, references=references)


def travel(codec: StepAnsCodec, tensor: Array) -> Array:
    return codec.decode(memoryview(codec.encode(tensor)), tensor.shape, tensor.dtype.name)


def squared_error(got: Array, want: Array) -> float:
    return float(np.square(got.astype(np.float64) - want.astype(np.float64)).mean())


def next_frame(share: float, seed: int = 2) -> Array:
    return TENSOR + np.float32(share) * correlated(SHAPE, seed)


# Distortion and rate


@pytest.mark.parametrize("code", [0, STEP_ZERO - 8, STEP_ZERO, STEP_ZERO + 1, STEP_CODES - 1])
def test_a_step_code_is_an_eighth_of_an_octave(code: int):
    assert step_size(code) == pytest.approx(2 ** ((code - 512) / 8), rel=1e-15)


@pytest.mark.parametrize("code", [-1, STEP_CODES, 1 << 31])
def test_a_step_code_out_of_range_is_refused(code: int):
    with pytest.raises(CodecError, match=f"step code {code} is not 0 to 1023"):
        StepAnsCodec([TABLES], code)


@pytest.mark.parametrize("parameter", range(STEP_ZERO - 64, STEP_ZERO + 24, 8))
@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 5, 8, 8), 1), ((60, 33, 8), 2), ((300, 40), 1), ((60, 9, 9, 6), 3)]
)
def test_the_error_is_that_of_rounding_to_the_step(
    shape: tuple[int, ...], axis: int, parameter: int
):
    """Orthonormal, with unit weights: a twelfth of the step squared, or the value where it is 0."""
    features = correlated(shape, 0, axis)
    codec = StepAnsCodec([tables_for(features, axis)], parameter)
    error = np.mean([squared_error(travel(codec, each), each) for each in np.split(features, 4)])
    assert error <= step_size(parameter) ** 2 / 12 * 1.03


def test_a_larger_step_costs_accuracy_and_saves_bytes():
    features = np.split(correlated((40, *SHAPE[1:])), 40)
    errors, sizes = [], []
    for parameter in range(STEP_ZERO - 64, STEP_ZERO + 40, 8):
        codec = StepAnsCodec([TABLES], parameter)
        errors.append(np.mean([squared_error(travel(codec, each), each) for each in features]))
        sizes.append(sum(len(codec.encode(each)) for each in features))
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < 1e-3 * errors[-1]
    assert sizes[0] > 5 * sizes[-1]


def test_the_integers_are_coded_near_their_entropy():
    """Tables by deviation and shape are within a few percent of the true distribution's."""
    features = correlated((200, *SHAPE[1:]))
    codec = StepAnsCodec([tables_for(features)], PARAMETER)
    symbols = [codec.quantise(each) for each in np.split(features, 200)]
    values = np.stack([each.values[0, :, 0] for each in symbols])
    bits = 0.0
    for column in values.reshape(200, -1).T:
        counts = np.unique(column, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / 200)).sum())
    got = sum(len(codec.pack(each)) for each in symbols)
    assert got <= bits / 8 * 1.1 + 200 * 8


def test_both_loops_make_the_same_payloads():
    for layered in (False, True):
        native, pure = (
            StepAnsCodec([TABLES], PARAMETER, layered=layered, native=native)
            for native in (True, False)
        )
        assert native.encode(TENSOR) == pure.encode(TENSOR)
        payload = native.encode(TENSOR)
        np.testing.assert_array_equal(read(native, payload), read(pure, payload))


# What it takes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_of_any_width_come_back(dtype: str):
    tensor = TENSOR.astype(dtype)
    got = travel(CODEC, tensor)
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_allclose(got, read(CODEC, CODEC.encode(TENSOR)), rtol=2e-3, atol=STEP)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_come_back_rounded_and_within_their_range(dtype: str):
    limits = np.iinfo(dtype)
    features = correlated((40, *SHAPE[1:])) * 60
    codec = StepAnsCodec([tables_for(features.clip(limits.min, limits.max))], STEP_ZERO + 24)
    tensor = np.rint(features[:1]).clip(limits.min, limits.max).astype(dtype)
    exact = codec.decode(memoryview(codec.encode(tensor)), SHAPE, "float32")
    assert exact.max() > limits.max
    got = travel(codec, tensor)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.rint(exact).clip(limits.min, limits.max))


def test_float16_saturates():
    tensor = np.full(SHAPE, 65504, np.float16)
    codec = StepAnsCodec([tables_for(correlated((40, *SHAPE[1:])) * 20000)], STEP_ZERO + 120)
    exact = codec.decode(memoryview(codec.encode(tensor)), SHAPE, "float32")
    got = travel(codec, tensor)
    assert exact.max() > 65504
    assert np.isfinite(got).all()
    assert got.max() == 65504


@pytest.mark.parametrize("dtype", STORED_DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 7), (2, 3, 4, 5)])
def test_a_tensor_without_tables_is_stored_as_it_is(shape: tuple[int, ...], dtype: str):
    tensor = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    codec = StepAnsCodec([None], PARAMETER)
    got = travel(codec, tensor)
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    np.testing.assert_array_equal(got, tensor)
    assert codec.encode(tensor)[0] == STORED


@given(st.integers(0, 2**32 - 1))
def test_stored_floats_keep_every_bit(seed: int):
    tensor = np.random.default_rng(seed).integers(0, 2**32, 9, np.uint32).view(np.float32)
    got = travel(StepAnsCodec([None], PARAMETER), tensor)
    assert got.tobytes() == tensor.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_is_refused(dtype: str, value: float):
    tensor = TENSOR.astype(dtype)
    tensor[0, 3, 2, 1] = value
    with pytest.raises(CodecError, match="infinities, NaN"):
        CODEC.encode(tensor)


def test_float64_beyond_float32_is_refused():
    with pytest.raises(CodecError, match="infinities, NaN"):
        CODEC.encode(np.full(SHAPE, 1e300))


@pytest.mark.parametrize("value", [1e6, -1e6, 1e30, 3e37])
def test_values_far_from_all_that_was_seen_are_clipped(value: float):
    tensor = TENSOR.copy()
    tensor[0, 3, 2, 1] = value
    symbols = CODEC.quantise(tensor)
    assert np.abs(symbols.values).max() == SYMBOL_MAX
    got = read(CODEC, CODEC.encode(tensor))
    assert np.isfinite(got).all()
    assert np.sign(got[0, 3, 2, 1]) == np.sign(value)


@pytest.mark.parametrize("layered", [False, True])
def test_every_integer_up_to_the_largest_comes_back(layered: bool):
    codec = StepAnsCodec([TABLES], 0, layered=layered)
    values = np.random.default_rng(0).integers(-SYMBOL_MAX, SYMBOL_MAX + 1, (1, 5, 1, 64), np.int32)
    values[0, 0, 0, :2] = SYMBOL_MAX, -SYMBOL_MAX
    references, symbols = References(), Symbols(0, 0, values)
    codec.decode(memoryview(codec.pack(symbols)), SHAPE, "float32", references=references)
    np.testing.assert_array_equal(references.find(symbols.tag).values, values)


def test_a_batch_is_each_of_its_items():
    batch = np.concatenate([correlated(SHAPE, seed) for seed in range(5)])
    got = travel(CODEC, batch)
    for item, want in zip(got, batch, strict=True):
        np.testing.assert_allclose(item[None], travel(CODEC, want[None]), atol=1e-4)


def test_several_tensors_have_tables_of_their_own():
    other = tables_for(correlated((200, 9), 0, 1))
    codec = StepAnsCodec([None, TABLES, other], PARAMETER)
    tensors = [np.arange(4), TENSOR, correlated((3, 9), 1, 1)]
    assert [codec.is_coded(index) for index in range(4)] == [False, True, True, False]
    for index, tensor in enumerate(tensors):
        payload = codec.encode(tensor, index)
        got = codec.decode(memoryview(payload), tensor.shape, tensor.dtype.name, index)
        limit = 0 if index == 0 else STEP**2 / 12 * 1.5
        assert squared_error(got, tensor) <= limit


def test_there_is_nothing_to_quantise_without_tables():
    with pytest.raises(CodecError, match="no tables for tensor 0; calibrate the artifact"):
        StepAnsCodec([None], PARAMETER).quantise(TENSOR)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 6), (), (0, 5, 8, 8), (1, 8, 8, 5)])
def test_a_tensor_that_the_tables_are_not_for_is_refused(shape: tuple[int, ...]):
    with pytest.raises(CodecError, match="do not fit the shape"):
        CODEC.encode(np.zeros(shape, np.float32))
    with pytest.raises(CodecError, match="do not fit the shape"):
        CODEC.decode(memoryview(CODEC.encode(TENSOR)), shape, "float32")


def test_the_layout_in_memory_does_not_reach_the_wire():
    wide = correlated((1, 5, 16, 8))[:, :, ::-2]
    plain = np.ascontiguousarray(wide)
    assert CODEC.encode(wide) == CODEC.encode(plain) == CODEC.encode(np.asfortranarray(plain))
    assert CODEC.encode(plain.astype(">f4")) == CODEC.encode(plain)


def test_a_decoded_tensor_is_its_own_and_may_be_written_to():
    payload = bytearray(CODEC.encode(TENSOR))
    got = CODEC.decode(memoryview(payload), SHAPE, "float32")
    before = got.copy()
    payload[:] = bytes(len(payload))
    np.testing.assert_array_equal(got, before)
    assert got.flags.writeable
    assert got.flags.c_contiguous


# Layers


def test_layers_together_give_what_one_stream_gives():
    payload = LAYERS.encode(TENSOR)
    assert payload[0] == LAYERED
    assert CODEC.encode(TENSOR)[0] == WHOLE
    np.testing.assert_array_equal(read(CODEC, payload), read(CODEC, CODEC.encode(TENSOR)))
    assert len(payload) <= len(CODEC.encode(TENSOR)) + 16


@pytest.mark.parametrize("parameter", [STEP_ZERO - 56, STEP_ZERO - 32, PARAMETER, STEP_ZERO])
def test_a_coarse_layer_is_shorter_and_better_than_nothing(parameter: int):
    codec = StepAnsCodec([TABLES], parameter, layered=True)
    features = np.split(correlated((40, *SHAPE[1:])), 40)
    payloads = [codec.encode(each) for each in features]
    coarse = [coarse_part(payload) for payload in payloads]
    assert sum(map(len, coarse)) < 0.95 * sum(map(len, payloads))
    pairs = list(zip(features, payloads, coarse, strict=True))
    fine_error = np.mean([squared_error(read(codec, payload), each) for each, payload, _ in pairs])
    error = np.mean([squared_error(read(codec, part), each) for each, _, part in pairs])
    nothing = np.mean([squared_error(np.zeros(SHAPE), each) for each in features])
    assert fine_error < error < nothing
    assert error <= (3 * step_size(parameter)) ** 2 / 12 * 1.03


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("value", [SYMBOL_MAX, -SYMBOL_MAX])
def test_a_coarse_layer_of_the_largest_integers_is_read(value: int, known: int):
    """The cell of -32767 begins at -32768 where bits are stored."""
    codec, references = StepAnsCodec([TABLES], 400, layered=True), References()
    first = codec.quantise(TENSOR)
    symbols = Symbols(0, 400, np.full_like(first.values, value))
    references.keep(first)
    payload = codec.pack(symbols, first if known else None)
    np.testing.assert_allclose(
        codec.decode(memoryview(coarse_part(payload)), SHAPE, "float32", references=references),
        codec.decode(memoryview(payload), SHAPE, "float32", references=references),
        atol=64 * step_size(400),
    )


def test_a_coarse_layer_is_no_frame_to_build_on():
    references, payload = References(), LAYERS.encode(TENSOR)
    read(CODEC, coarse_part(payload), references)
    with pytest.raises(ReferenceMissingError):
        references.find(CODEC.quantise(TENSOR).tag)


def test_only_a_layered_payload_has_a_part_to_leave_out():
    whole = CODEC.encode(TENSOR)
    coarse = coarse_part(LAYERS.encode(TENSOR))
    stored = StepAnsCodec([None], PARAMETER).encode(TENSOR)
    assert coarse[0] == COARSE
    for payload in (whole, coarse, stored):
        assert coarse_part(payload) == payload


# Streams


@pytest.mark.parametrize("codec", [CODEC, LAYERS], ids=["whole", "layered"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 1.0, 10.0])
def test_a_known_frame_changes_the_bytes_and_never_the_answer(codec: StepAnsCodec, share: float):
    references = References()
    first, second = codec.quantise(TENSOR), codec.quantise(next_frame(share))
    read(codec, codec.pack(first), references)
    alone, after = codec.pack(second), codec.pack(second, first)
    np.testing.assert_array_equal(read(codec, after, references), read(codec, alone))
    assert references.find(second.tag).values.tolist() == second.values.tolist()
    assert len(after) <= len(alone)


@pytest.mark.parametrize("value", [600, -600, SYMBOL_MAX, -SYMBOL_MAX])
def test_a_known_frame_of_large_integers_predicts_alike_on_both_sides(value: int):
    """A sixty-fourth of 64 times the largest integer does not fit 16 bits on the way."""
    codec, references = StepAnsCodec([TABLES], 430), References()
    first = codec.quantise(TENSOR)
    first = replace(first, values=np.where(first.values, value, 0).astype(np.int32))
    second = replace(first, values=np.where(first.values, value - 9 * np.sign(value), 0))
    read(codec, codec.pack(first), references)
    payload = codec.pack(second, first)
    assert payload[1] > 0
    read(codec, payload, references)
    assert references.find(second.tag).values.tolist() == second.values.tolist()


@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.integers(STEP_ZERO - 120, STEP_ZERO + 30))
def test_any_stream_is_never_longer_than_its_frames_alone(seed: int, share: float, parameter: int):
    codec, references = StepAnsCodec([TABLES], parameter), References()
    known = None
    for turn in range(3):
        symbols = codec.quantise(next_frame(share * turn, seed))
        payload = codec.pack(symbols, known)
        assert len(payload) <= len(codec.pack(symbols))
        read(codec, payload, references)
        assert references.find(symbols.tag).values.tolist() == symbols.values.tolist()
        known = symbols


def test_a_scene_that_stands_still_is_nearly_free():
    symbols = CODEC.quantise(TENSOR)
    assert len(CODEC.pack(symbols, symbols)) < 0.2 * len(CODEC.pack(symbols))


def test_a_coarse_layer_may_build_on_a_known_frame():
    references = References()
    first, second = LAYERS.quantise(TENSOR), LAYERS.quantise(next_frame(0.05))
    read(LAYERS, LAYERS.pack(first), references)
    payload = LAYERS.pack(second, first)
    assert payload[1] > 0
    error = squared_error(read(LAYERS, coarse_part(payload), references), next_frame(0.05))
    assert error < (3 * STEP) ** 2 / 12 * 1.2


def test_a_frame_that_is_not_known_is_missing():
    first, second = CODEC.quantise(TENSOR), CODEC.quantise(next_frame(0.05))
    payload = CODEC.pack(second, first)
    assert payload[1] > 0
    other = References()
    other.keep(CODEC.quantise(next_frame(5)))
    for references in (None, References(), other):
        with pytest.raises(ReferenceMissingError):
            read(CODEC, payload, references)


def test_a_frame_of_another_rate_index_or_shape_does_not_help():
    symbols = CODEC.quantise(TENSOR)
    alone = CODEC.pack(symbols)
    for other in (
        replace(symbols, parameter=PARAMETER + 1),
        replace(symbols, index=1),
        replace(symbols, values=np.concatenate([symbols.values, symbols.values])),
    ):
        assert CODEC.pack(symbols, other) == alone


@pytest.mark.parametrize("other", ["rate", "batch"])
def test_a_payload_that_builds_on_a_frame_of_another_kind_is_refused(other: str):
    symbols, references = CODEC.quantise(TENSOR), References()
    if other == "rate":
        known = replace(symbols, parameter=PARAMETER + 1)
    else:
        known = replace(symbols, values=np.concatenate([symbols.values, symbols.values]))
    references.keep(known)
    payload = bytearray(CODEC.pack(symbols, symbols))
    payload[2:10] = struct.pack("<Q", known.tag)
    with pytest.raises(CodecError, match="another rate or shape") as caught:
        read(CODEC, bytes(payload), references)
    assert not isinstance(caught.value, ReferenceMissingError)


def test_tables_without_motion_code_every_frame_by_itself():
    codec = StepAnsCodec([tables_for(correlated((40, *SHAPE[1:])))], PARAMETER)
    symbols = codec.quantise(TENSOR)
    assert codec.pack(symbols, symbols) == codec.pack(symbols)


# Refusals


@pytest.mark.parametrize("payload", [b"", b"\x01", bytes(2), b"\x04\0abcd", b"\xff\0abcd"])
def test_an_unknown_kind_is_refused(payload: bytes):
    with pytest.raises(CodecError, match="a step-ans payload of"):
        read(CODEC, payload)


def test_stored_and_coded_tensors_are_not_taken_for_each_other():
    stored = StepAnsCodec([None], PARAMETER)
    with pytest.raises(CodecError, match="kind 0"):
        read(CODEC, stored.encode(TENSOR))
    for payload in (CODEC.encode(TENSOR), LAYERS.encode(TENSOR)):
        with pytest.raises(CodecError, match=r"kind [12]"):
            read(stored, payload)


@pytest.mark.parametrize("level", [3, 9, 255])
def test_a_motion_level_that_the_tables_do_not_have_is_refused(level: int):
    payload = bytearray(CODEC.encode(TENSOR))
    payload[1] = level
    with pytest.raises(CodecError, match=f"motion level {level}"):
        read(CODEC, bytes(payload), References())


@pytest.mark.parametrize("size", [0, 3, 7])
def test_a_payload_too_short_for_its_reference_is_refused(size: int):
    with pytest.raises(CodecError, match="motion level 1"):
        read(CODEC, bytes([WHOLE, 1, *range(size)]), References())


@pytest.mark.parametrize("kind", [LAYERED, COARSE])
@pytest.mark.parametrize("claim", [0, 2, 1 << 20, (1 << 32) - 1])
def test_a_layer_that_claims_another_size_is_refused(claim: int, kind: int):
    payload = bytearray(LAYERS.encode(TENSOR))
    payload[0] = kind
    payload[2:6] = struct.pack("<I", claim)
    with pytest.raises(CodecError):
        read(CODEC, bytes(payload))


@pytest.mark.parametrize("size", range(2, 8))
@pytest.mark.parametrize("kind", [WHOLE, LAYERED, COARSE])
def test_a_payload_of_a_few_bytes_is_refused(kind: int, size: int):
    with pytest.raises(CodecError):
        read(CODEC, bytes([kind, *bytes(size - 1)]))


def test_a_payload_of_other_tables_or_another_rate_is_refused():
    payload = CODEC.encode(TENSOR)
    other = StepAnsCodec([tables_for(correlated((40, *SHAPE[1:]), 9) * 3)], PARAMETER)
    for codec in (other, StepAnsCodec([TABLES], PARAMETER + 16)):
        with pytest.raises(CodecError):
            read(codec, payload)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("value", [SYMBOL_MAX + 1, -SYMBOL_MAX - 1, -(1 << 31), (1 << 31) - 20000])
def test_a_coefficient_out_of_range_is_refused(value: int, native: bool):
    """The smallest integer that there is has no magnitude."""
    codec = StepAnsCodec(
        [replace(TABLES, scales=np.full_like(TABLES.scales, STEP_CODES))], 0, native=native
    )
    model = codec._coded_part(0).alone((1, 5, 1, 64)).model
    values = np.full(len(model.tables), value, np.int32)
    payload = bytes([WHOLE, 0]) + encode_values(values, model, Mode.WHOLE, native=native)
    with pytest.raises(CodecError, match="out of range"):
        read(codec, payload)


def damage(payload: bytes, generator: random.Random) -> bytes:
    """Flip a few bits, and once in four cut the rest off or add to it."""
    damaged = bytearray(payload)
    for _ in range(generator.randint(1, 4)):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    turn = generator.random()
    if turn < 0.125:
        return bytes(damaged[: generator.randrange(len(damaged))])
    return bytes(damaged) + (generator.randbytes(generator.randrange(9)) if turn < 0.25 else b"")


@pytest.mark.parametrize("native", [True, False])
def test_damaged_payloads_raise_codec_error_or_decode_in_bounded_time_and_memory(native: bool):
    generator, references = random.Random(4), References()
    codec = StepAnsCodec([TABLES, None], PARAMETER, native=native)
    first, second = codec.quantise(TENSOR), codec.quantise(next_frame(0.05))
    layered = LAYERS.pack(second, first)
    payloads = [
        codec.pack(first), codec.pack(second, first), layered, coarse_part(layered),
        LAYERS.pack(first), coarse_part(LAYERS.pack(first)),
    ]  # fmt: skip
    references.keep(first)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        for turn in range(600):
            damaged = damage(payloads[turn % len(payloads)], generator)
            try:
                got = codec.decode(memoryview(damaged), SHAPE, "float32", 0, references)
            except CodecError:
                continue
            assert (got.shape, got.dtype) == (SHAPE, np.float32)
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 15


@given(st.binary(max_size=80), st.sampled_from(sorted(DTYPES)), st.integers(0, 1))
def test_any_bytes_are_a_tensor_or_a_codec_error(payload: bytes, dtype: str, index: int):
    codec, references = StepAnsCodec([TABLES, None], PARAMETER), References()
    if index == 0 and dtype not in ("float16", "float32", "float64", "int8", "uint8"):
        return  # no such tables: read_tables refuses them
    try:
        got = codec.decode(memoryview(payload), SHAPE, dtype, index, references)
    except CodecError:
        return
    assert (got.shape, got.dtype) == (SHAPE, DTYPES[dtype])


@pytest.mark.parametrize("parameter", [0, STEP_CODES - 1])
def test_any_step_decodes_without_a_warning(parameter: int):
    """The sender names the step; warnings are errors here."""
    codec = StepAnsCodec([TABLES], parameter)
    got = read(codec, codec.encode(TENSOR), dtype="float16")
    assert np.isfinite(got).all()


def test_memory_goes_by_the_batch_that_is_claimed_and_is_given_back():
    """16 kB of features an item; what is worked with is several times as much, and not kept."""
    codec = StepAnsCodec([TABLES], PARAMETER)
    batch = 64
    noise = memoryview(bytes([WHOLE, 0]) + random.Random(0).randbytes(400))
    tracemalloc.start()
    try:
        for size in range(2, batch + 1):
            with pytest.raises(CodecError):
                codec.decode(noise, (size, *SHAPE[1:]), "float32")
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * batch * 5 * 64
    assert now < 100_000


def test_what_decoding_allocates_is_counted_before():
    other = tables_for(correlated((200, 9), 0, 1))
    codec = StepAnsCodec([TABLES, None, other], PARAMETER)
    assert codec.elements(SHAPE) == 5 * 8 * 8
    assert codec.elements((3, 5, 9, 1)) == 3 * 5 * 2 * 64
    assert codec.elements((1, 5, 1 << 31, 1 << 31)) == 5 << 62
    assert codec.elements((7, 2), 1) == 14
    assert codec.elements((4, 9), 2) == 36
    with pytest.raises(CodecError, match="do not fit"):
        codec.elements((1, 4, 8, 8))


@pytest.mark.parametrize("level", [1, 9, 255])
def test_a_stored_payload_has_no_motion_level(level: int):
    codec = StepAnsCodec([None], PARAMETER)
    payload = codec.encode(TENSOR)
    with pytest.raises(CodecError, match=f"stored step-ans payload of motion level {level}"):
        codec.decode(memoryview(bytes([payload[0], level]) + payload[2:]), SHAPE, "float32")


def test_one_rate_keeps_little_whatever_motion_levels_a_peer_asks_for():
    tables = moving_tables(correlated((4, 8, 32, 32)))
    tables = replace(
        tables, pulls=np.repeat(tables.pulls, 4, 0), drifts=np.repeat(tables.drifts, 4, 0)
    )
    shape = (1, 8, 128, 128)
    codec = StepAnsCodec([tables], STEP_ZERO - 16)
    tensor = correlated(shape, 3)
    known, references = codec.quantise(tensor), References()
    references.keep(known)
    packed = codec.pack(known, known)
    assert packed[1] > 0
    codec = StepAnsCodec([tables], STEP_ZERO - 16)
    tracemalloc.start()
    try:
        for level in range(1, len(tables.pulls) + 1):
            payload = packed[:1] + bytes([level]) + packed[2:]
            with contextlib.suppress(CodecError):
                codec.decode(memoryview(payload), shape, "float32", references=references)
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 24 * known.values.size


def test_the_transform_meets_every_coefficient_it_is_told():
    """Decoding puts each integer where encoding took it from."""
    symbols = CODEC.quantise(TENSOR)
    want = Transform(TABLES).backward(symbols.values.astype(np.float32) * np.float32(STEP), SHAPE)
    np.testing.assert_array_equal(read(CODEC, CODEC.encode(TENSOR)), want)

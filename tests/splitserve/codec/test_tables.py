"""The tables file: what was written comes back, and whatever contradicts itself is refused."""

import io
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from features import correlated, moving_tables, spec_of, tables_for
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec import FeatureTables, read_tables, write_tables
from splitserve.codec.tables import LEVELS_MAX, may_be_coded
from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, Array, TensorSpec

FEATURES = correlated((24, 5, 8, 8))
TABLES = moving_tables(FEATURES)
SPEC = spec_of(FEATURES)
NAMES = [field.name for field in fields(FeatureTables)]
CONTENT = write_tables([TABLES])


def stored(arrays: dict[str, Any], **options: Any) -> bytes:
    target = io.BytesIO()
    np.savez(target, **options, **arrays)
    return target.getvalue()


def all_arrays() -> dict[str, Array]:
    return {f"0.{name}": getattr(TABLES, name) for name in NAMES}


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def npy(values: Array, header: str | None = None) -> bytes:
    """A file of numpy's format, with any header."""
    if header is None:
        target = io.BytesIO()
        np.save(target, values)
        return target.getvalue()
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values.tobytes()


def with_file(name: str, content: bytes) -> bytes:
    return zipped({f"0.{each}.npy": npy(getattr(TABLES, each)) for each in NAMES} | {name: content})


def refuse(content: bytes, match: str | None = None) -> int:
    """Peak of memory while a file is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=match):
            read_tables(content, [SPEC])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Round trip


def test_tables_come_back_as_they_were_written():
    (got,) = read_tables(CONTENT, [SPEC])
    assert got is not None
    for name in NAMES:
        value, want = getattr(got, name), getattr(TABLES, name)
        assert (value.dtype, value.shape) == (want.dtype, want.shape)
        assert value.tobytes() == want.tobytes(), name
        assert value.flags.c_contiguous


def test_a_tensor_without_tables_stays_without():
    specs = [spec_of(FEATURES, name) for name in "abc"]
    got = read_tables(write_tables([None, TABLES, None]), specs)
    assert [table is None for table in got] == [True, False, True]
    assert read_tables(write_tables([None, None, None]), specs) == [None, None, None]


def test_writing_the_same_tables_makes_the_same_bytes():
    assert write_tables([TABLES]) == CONTENT


def test_arrays_in_fortran_order_are_read_as_what_they_mean():
    """The compiled loops go through the tables row by row."""
    turned = {name: np.array(value, order="F") for name, value in all_arrays().items()}
    (got,) = read_tables(stored(turned), [SPEC])
    assert got is not None
    assert got.cumulative.flags.c_contiguous
    np.testing.assert_array_equal(got.cumulative, TABLES.cumulative)
    np.testing.assert_array_equal(got.basis, TABLES.basis)


# Contradictions


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_field_is_named(name: str):
    arrays = all_arrays()
    del arrays[f"0.{name}"]
    refuse(stored(arrays), f"features: {name} is missing")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "int8", "bool", ">f4", ">i2", "S4"])
def test_a_field_of_another_type_is_refused(name: str, dtype: str):
    value = getattr(TABLES, name)
    if value.dtype != np.dtype(dtype):
        refuse(stored(all_arrays() | {f"0.{name}": value.astype(dtype)}))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[None],
        lambda value: value.reshape(-1)[:1].reshape(()),
        lambda value: value.reshape(-1)[:0],
        lambda value: np.append(value.reshape(-1), value.reshape(-1)[:1]),
        lambda value: np.zeros((0, 5), value.dtype),
    ],
    ids=["deeper", "scalar", "empty", "longer", "hollow"],
)
def test_a_field_of_another_shape_is_refused(name: str, change: Callable[[Array], Array]):
    value = getattr(TABLES, name)
    changed = change(value)
    if changed.shape != value.shape:
        refuse(stored(all_arrays() | {f"0.{name}": changed}))


def changed(name: str, at: Any, value: Any) -> FeatureTables:
    field = getattr(TABLES, name).copy()
    field[at] = value
    return replace(TABLES, **{name: field})


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        (changed("cumulative", (3, 0), 1), "rise"),
        (changed("cumulative", (3, 32), 16383), "rise"),
        (changed("cumulative", (3, 32), 0), "rise"),
        (changed("cumulative", (143, 7), TABLES.cumulative[143, 6]), "rise"),
        (changed("cumulative", (143, 7), 65535), "rise"),
        (changed("basis", (0, 0), np.nan), "finite"),
        (changed("gain", 0, np.inf), "finite"),
        (changed("bands", 0, np.nan), "finite"),
        (changed("bias", (0, 0), -np.inf), "finite"),
        (changed("gain", 1, 0), "not positive"),
        (changed("bands", 1, -1), "not positive"),
        (changed("gain", 1, 1e-40), "weight is out of range"),
        (changed("gain", 0, 2.0**41), "weight is out of range"),
        (changed("bands", 3, 2.0**-41), "weight is out of range"),
        (changed("bands", 3, 3e38), "weight is out of range"),
        (changed("block", 0, 0), "block"),
        (changed("block", slice(None), (4, 4)), "block"),
        (changed("block", slice(None), (-8, -8)), "block"),
        (changed("block", slice(None), (64, 1)), "block"),
        (changed("block", slice(None), (1 << 32, 1 << 32)), "block"),
        (changed("axis", (), 0), "channels"),
        (changed("axis", (), 2), "channels"),
        (changed("axis", (), -3), "channels"),
        (changed("axis", (), 4), "channels"),
        (changed("axis", (), 1 << 40), "channels"),
        (changed("scales", (0, 0), 1025), "range"),
        (changed("scales", (0, 0), -32768), "range"),
        (changed("drifts", (0, 0), 1025), "range"),
        (changed("drifts", (0, 0), -32768), "range"),
        (changed("pulls", (0, 0), 65), "range"),
        (changed("widened", 9, 128), "range"),
    ],
)
def test_values_that_contradict_are_refused(tables: FeatureTables, match: str):
    refuse(write_tables([tables]), match)


def test_too_many_motion_levels_are_refused():
    levels = LEVELS_MAX + 1
    size = TABLES.pulls.shape[1]
    many = replace(
        TABLES, pulls=np.zeros((levels, size), np.uint8), drifts=np.zeros((levels, size), np.int16)
    )
    refuse(write_tables([many]), "motion levels")


@pytest.mark.parametrize(
    "shape", [(), ("batch",), ("batch", 6, 8, 8), ("batch", "n", 8, 8), ("batch", 8, 8, 5)]
)
def test_tables_of_another_tensor_are_refused(shape: tuple[int | str, ...]):
    spec = TensorSpec(name="features", dtype="float32", shape=shape)
    with pytest.raises(CodecError, match="channels are not the tensor's"):
        read_tables(CONTENT, [spec])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_are_for_numbers_that_may_be_rounded(dtype: str):
    spec = spec_of(FEATURES, dtype=dtype)
    if dtype in ("float16", "float32", "float64", "int8", "uint8"):
        assert may_be_coded(spec)
        assert read_tables(CONTENT, [spec])[0] is not None
        return
    assert not may_be_coded(spec)
    with pytest.raises(CodecError, match=f"{dtype} cannot be rounded"):
        read_tables(CONTENT, [spec])


def test_tables_without_mixing_are_for_as_many_channels_as_they_have_weights():
    features = correlated((20, 600, 2, 2))
    content = write_tables([tables_for(features)])
    assert read_tables(content, [spec_of(features)])[0] is not None
    with pytest.raises(CodecError, match="channels are not the tensor's"):
        read_tables(content, [spec_of(features[:, :599])])


# Hostile files


@pytest.mark.parametrize("name", ["1.axis", "00.axis", "axis", "0.", "0.axes", "-1.axis", ""])
def test_a_name_that_belongs_to_no_tensor_is_refused(name: str):
    refuse(with_file(f"{name}.npy", npy(np.array(1))), "belongs to no tensor")


def test_a_name_that_is_there_twice_is_refused():
    target = io.BytesIO(CONTENT)
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("0.axis.npy", npy(np.array(1)))
    refuse(target.getvalue(), "twice")


def test_a_compressed_file_is_refused_before_it_is_read():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.basis.npy", bytes(100 << 20))
    assert len(target.getvalue()) < 200_000
    assert refuse(target.getvalue(), "is compressed") < 2 << 20


def test_entries_that_share_their_bytes_do_not_grow():
    """A thousand entries of the directory that point at the same megabyte."""
    one = zipped({"0.basis.npy": bytes(1 << 20)})
    start = one.rindex(b"PK\x01\x02")
    entry, end = one[start : one.rindex(b"PK\x05\x06")], one[one.rindex(b"PK\x05\x06") :]
    directory = struct.pack("<HHII", 1000, 1000, 1000 * len(entry), start)
    bomb = one[:start] + 1000 * entry + end[:8] + directory + end[20:]
    assert len(zipfile.ZipFile(io.BytesIO(bomb)).infolist()) == 1000
    assert refuse(bomb, "claim more bytes") < 8 << 20


@pytest.mark.parametrize(
    "shape", ["(1000000000, 100)", "(999999999, 999999999)", "(0,)", "(5, -5)"]
)
def test_an_array_that_claims_another_size_is_refused_before_it_is_allocated(shape: str):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    assert refuse(with_file("0.basis.npy", npy(TABLES.basis, header)), "0.basis.npy") < 1 << 20


@pytest.mark.parametrize(
    "header",
    [
        "",
        "(" * 9000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 5), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (5, 5), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (5, 5), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (5, 5), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 5), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5L, 5L), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 25, }",
        "__import__('os').system('true')",
    ],
)
def test_an_array_header_that_numpy_would_not_write_is_refused(header: str):
    refuse(with_file("0.basis.npy", npy(TABLES.basis, header)))


@pytest.mark.parametrize(
    "shape",
    [
        f"({'1, ' * 65})",
        f"({', '.join(['1'] * 65)})",
        "(0, 999999999, 999999999, 999999999, 999999999)",
        "(5, 5, 1)",
        "(25, 1, )",
        "(0, 5, 0)",
    ],
)
def test_an_array_of_more_sizes_than_any_field_has_is_refused(shape: str):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    values = np.zeros(0 if "0" in shape else 1, np.float32)
    refuse(with_file("0.basis.npy", npy(values, header)), "0.basis.npy is not an array")


def test_a_pickle_is_refused():
    target = io.BytesIO()
    np.save(target, np.array([{"a": 1}], object), allow_pickle=True)
    refuse(with_file("0.basis.npy", target.getvalue()), "0.basis.npy")


@pytest.mark.parametrize("content", [b"", b"raw", b"\x93NUMPY", b"\x93NUMPY\x03\x00" + bytes(99)])
def test_an_entry_that_is_no_array_is_refused(content: bytes):
    refuse(with_file("0.basis.npy", content), "0.basis.npy")


def test_an_array_in_front_of_an_archive_is_not_taken_for_it():
    (got,) = read_tables(npy(np.arange(3)) + CONTENT, [SPEC])
    assert got is not None


def test_an_encrypted_entry_is_refused():
    content = bytearray(CONTENT)
    for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(mark) + at] |= 1
    refuse(bytes(content), "broken codec tables")


@pytest.mark.parametrize("content", [b"", b"PK", bytes(1000), npy(np.arange(3)), CONTENT[:-1]])
def test_what_is_no_archive_is_refused(content: bytes):
    refuse(content, "broken codec tables")


def test_damaged_files_raise_codec_error_or_give_tables_that_fit():
    generator, started = random.Random(7), time.perf_counter()
    interesting = [at for at, byte in enumerate(CONTENT) if byte][:4000]
    directory = range(CONTENT.index(b"PK\x01\x02"), len(CONTENT))
    for turn in range(1500):
        damaged = bytearray(CONTENT)
        for _ in range(generator.randint(1, 4)):
            at = generator.choice((interesting, directory)[turn % 2])
            damaged[at] = generator.choice((0, 0xFF, damaged[at] ^ 1 << generator.randrange(8)))
        if turn % 10 == 0:
            del damaged[generator.randrange(len(damaged)) :]
        try:
            got = read_tables(bytes(damaged), [SPEC])
        except CodecError:
            continue
        assert all(table is None or table.check(SPEC) is None for table in got)
    assert time.perf_counter() - started < 20


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes):
    with pytest.raises(CodecError):
        read_tables(content, [SPEC])

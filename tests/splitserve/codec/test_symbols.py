"""What both sides of a stream remember: found by hash, few, small, and safe to share."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec import STREAM_ELEMENTS_MAX, References, Symbols
from splitserve.codec.symbols import REFERENCE_ELEMENTS_MAX, REFERENCE_ELEMENTS_MIN
from splitserve.errors import CodecError, ReferenceMissingError

LARGE = STREAM_ELEMENTS_MAX // 8


def symbols(seed: int = 0, size: int = 12, index: int = 0, parameter: int = 500) -> Symbols:
    values = np.random.default_rng(seed).integers(-32767, 32768, (1, size, 1, 1), np.int32)
    return Symbols(index, parameter, values)


def assert_same(got: Symbols, want: Symbols) -> None:
    assert (got.index, got.parameter, got.tag) == (want.index, want.parameter, want.tag)
    np.testing.assert_array_equal(got.values, want.values)


def test_the_same_integers_have_the_same_tag():
    assert symbols().tag == symbols().tag
    assert 0 <= symbols().tag < 1 << 64


@given(st.integers(0, 11), st.integers(-32767, 32767))
def test_any_other_integer_makes_another_tag(at: int, value: int):
    other = symbols()
    if other.values[0, at] == value:
        return
    other.values[0, at] = value
    assert other.tag != symbols().tag


def test_another_tensor_or_rate_makes_another_tag():
    tags = {symbols(index=index, parameter=rate).tag for index in (0, 1) for rate in (0, 500, 501)}
    assert len(tags) == 6


def test_the_layout_in_memory_does_not_change_the_tag():
    values = np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4)
    turned = Symbols(0, 1, np.asfortranarray(values))
    assert turned.tag == Symbols(0, 1, values).tag


def test_what_is_kept_is_found():
    references, kept = References(), symbols()
    references.keep(kept)
    assert_same(references.find(kept.tag), kept)


def test_what_is_not_known_is_missing():
    with pytest.raises(ReferenceMissingError, match="not known here"):
        References().find(1)
    assert issubclass(ReferenceMissingError, CodecError)


def test_the_oldest_makes_room():
    references, all_kept = References(), [symbols(seed, LARGE) for seed in range(9)]
    for kept in all_kept:
        references.keep(kept)
    with pytest.raises(ReferenceMissingError):
        references.find(all_kept[0].tag)
    for kept in all_kept[1:]:
        assert_same(references.find(kept.tag), kept)


def test_what_is_built_on_stays():
    references, first = References(), symbols(0, LARGE)
    references.keep(first)
    for seed in range(1, 24):
        references.keep(symbols(seed, LARGE))
        assert_same(references.find(first.tag), first)


def test_what_is_kept_again_is_the_youngest():
    references, first = References(), symbols(0, LARGE)
    for seed in range(16):
        references.keep(first if seed % 4 == 0 else symbols(seed, LARGE))
    assert references.find(first.tag).tag == first.tag


def test_what_is_kept_again_takes_its_room_once():
    references, first, other = References(), symbols(0, LARGE), symbols(1, LARGE)
    references.keep(other)
    for _ in range(20):
        references.keep(first)
    assert_same(references.find(other.tag), other)


def test_a_stream_of_many_tensors_keeps_its_last_frames():
    references = References()
    frames = [[symbols(20 * turn + at, 5000, at) for at in range(9)] for turn in range(4)]
    for frame in frames:
        for each in frame:
            references.keep(each)
    for frame in frames:
        for each in frame:
            assert_same(references.find(each.tag), each)


def test_tiny_tensors_stay_few():
    references, count = References(), STREAM_ELEMENTS_MAX // REFERENCE_ELEMENTS_MIN
    tags = []
    for value in range(count + 1):
        each = Symbols(0, value % 1024, np.full((1, 1, 1, 2), value // 1024, np.int32))
        tags.append(each.tag)
        references.keep(each)
    assert references.find(tags[1])
    with pytest.raises(ReferenceMissingError):
        references.find(tags[0])


def test_a_stream_takes_two_bytes_a_coefficient_and_no_more():
    references = References()
    tracemalloc.start()
    try:
        for seed in range(12):
            references.keep(symbols(seed, REFERENCE_ELEMENTS_MAX))
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 2 * STREAM_ELEMENTS_MAX + 100_000


def test_what_is_kept_does_not_change_with_the_sender():
    references, kept = References(), symbols()
    tag, before = kept.tag, kept.values.copy()
    references.keep(kept)
    kept.values[:] = 0
    np.testing.assert_array_equal(references.find(tag).values, before)


def test_a_large_tensor_is_not_kept():
    references = References()
    largest, larger = symbols(size=REFERENCE_ELEMENTS_MAX), symbols(size=REFERENCE_ELEMENTS_MAX + 1)
    assert largest.may_be_kept
    assert not larger.may_be_kept
    for each in (largest, larger):
        references.keep(each)
    assert_same(references.find(largest.tag), largest)
    with pytest.raises(ReferenceMissingError):
        references.find(larger.tag)


def test_many_threads_may_keep_and_find_at_once():
    references, problems = References(), []
    frames = [symbols(seed) for seed in range(40)]

    def work(offset: int) -> None:
        for turn in range(400):
            frame = frames[(offset + turn) % len(frames)]
            references.keep(frame)
            try:
                if references.find(frame.tag).tag != frame.tag:
                    problems.append("another frame")
            except ReferenceMissingError:
                pass  # the others keep too
            except Exception as error:  # noqa: BLE001
                problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []

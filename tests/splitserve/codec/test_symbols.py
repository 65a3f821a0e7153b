"""What both sides of a stream remember: found by hash, few, small, and safe to share."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec import REFERENCES_MAX, References, Symbols
from splitserve.codec.symbols import REFERENCE_ELEMENTS_MAX
from splitserve.errors import CodecError, ReferenceMissingError


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
    references, all_kept = References(), [symbols(seed) for seed in range(REFERENCES_MAX + 1)]
    for kept in all_kept:
        references.keep(kept)
    with pytest.raises(ReferenceMissingError):
        references.find(all_kept[0].tag)
    for kept in all_kept[1:]:
        assert_same(references.find(kept.tag), kept)


def test_what_is_built_on_stays():
    references, first = References(), symbols(0)
    references.keep(first)
    for seed in range(1, 3 * REFERENCES_MAX):
        references.keep(symbols(seed))
        assert_same(references.find(first.tag), first)


def test_what_is_kept_again_is_the_youngest():
    references, first = References(), symbols(0)
    for seed in range(2 * REFERENCES_MAX):
        references.keep(first if seed % 4 == 0 else symbols(seed))
    assert references.find(first.tag).tag == first.tag


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

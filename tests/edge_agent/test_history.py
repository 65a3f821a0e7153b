"""Only what was acknowledged on the connection in use, and lately, is built on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.history import Coded, History
from splitserve.codec import STREAM_ELEMENTS_MAX, References, Symbols

POSITION, RATE = 2, 500
LARGE = STREAM_ELEMENTS_MAX // 8


class Link:
    """A connection whose number a test sets."""

    def __init__(self, number: int | None = 1) -> None:
        self.number = number

    def __call__(self) -> int | None:
        return self.number


def symbols(index: int = 0, parameter: int = RATE, size: int = 4) -> Symbols:
    return Symbols(index, parameter, np.arange(size, dtype=np.int32).reshape(1, 1, 1, size))


def coded(*one: Symbols, number: int = 0) -> Coded:
    return Coded(one, number)


def known(history: History, parameter: int = RATE, position: int = POSITION) -> set[int]:
    return set(history.begin(position, parameter, 0).references)


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def history(link: Link) -> History:
    return History(link)


def test_at_first_nothing_is_known(history: History) -> None:
    begun = history.begin(POSITION, RATE, 1)
    assert (begun.connection, dict(begun.references)) == (None, {})


def test_the_latest_that_was_acknowledged_is_known(history: History) -> None:
    first, second = symbols(), symbols()
    history.acknowledge(POSITION, coded(first), 1)
    history.acknowledge(POSITION, coded(second), 1)
    begun = history.begin(POSITION, RATE, 1)
    assert begun.connection == 1
    assert begun.references == {0: second}


def test_each_tensor_of_a_cut_has_its_own(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols(0), symbols(2)), 1)
    assert known(history) == {0, 2}


def test_another_cut_or_rate_knows_nothing(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols()), 1)
    assert known(history, parameter=RATE + 1) == set()
    assert known(history, position=POSITION + 1) == set()
    assert known(history) == {0}


@pytest.mark.parametrize("number", [None, 2])
def test_what_a_lost_connection_acknowledged_is_not_known(
    history: History, link: Link, number: int | None
) -> None:
    history.acknowledge(POSITION, coded(symbols()), 1)
    link.number = number
    assert known(history) == set()


def test_a_late_reply_of_an_old_connection_changes_nothing(history: History, link: Link) -> None:
    link.number = 2
    history.acknowledge(POSITION, coded(symbols(0)), 2)
    history.acknowledge(POSITION, coded(symbols(1)), 1)
    assert known(history) == {0}


def test_a_transport_that_remembers_nothing_acknowledges_nothing() -> None:
    history = History(Link(None))
    history.acknowledge(POSITION, coded(symbols()), None)
    assert known(history) == set()


def test_what_is_forgotten_is_not_known(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols()), 1)
    history.forget()
    assert known(history) == set()


def test_what_the_cloud_may_have_dropped_meanwhile_is_not_known(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols(), number=0), 1)
    history.begin(POSITION, RATE, LARGE)
    history.acknowledge(POSITION, coded(symbols(size=LARGE), number=0), 1)
    for _ in range(4):  # known + 2 x between + own: 1 + 2 x 3 + 1 eighths are there
        assert history.begin(POSITION, RATE, LARGE).references
    assert not history.begin(POSITION, RATE, LARGE).references


def test_what_is_sent_meanwhile_at_another_cut_counts_too(history: History) -> None:
    history.begin(POSITION, RATE, LARGE)
    history.acknowledge(POSITION, coded(symbols(size=LARGE), number=0), 1)
    history.begin(POSITION + 1, RATE, 3 * LARGE)
    assert history.begin(POSITION, RATE, LARGE).references
    assert not history.begin(POSITION, RATE, LARGE).references


def test_cuts_of_many_tensors_are_known(history: History) -> None:
    frame = Coded(tuple(symbols(index, size=20_000) for index in range(9)))
    history.begin(POSITION, RATE, frame.room)
    history.acknowledge(POSITION, frame, 1)
    assert set(history.begin(POSITION, RATE, frame.room).references) == set(range(9))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(1, 262_144), (4, 131_072), (9, 20_000), (40, 3)]), st.booleans()
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=20)
def test_what_is_known_is_there_when_frames_arrive_in_order(
    frames: list[tuple[tuple[int, int], bool]], in_flight: int
) -> None:
    history, cloud = History(Link()), References()
    waiting: list[tuple[int, Coded, set[int]]] = []

    def arrive() -> None:
        position, sent, tags = waiting.pop(0)
        for tag in tags:
            cloud.find(tag)
        for one in sent.symbols:
            cloud.keep(one)
        history.acknowledge(position, sent, 1)

    for turn, ((count, size), elsewhere) in enumerate(frames * 2):
        position = 10 * count + elsewhere
        made = tuple(
            Symbols(index, RATE, np.full((1, 1, 1, size), turn, np.int32)) for index in range(count)
        )
        begun = history.begin(position, RATE, sum(one.room for one in made))
        tags = {one.tag for one in begun.references.values()}
        waiting.append((position, Coded(made, begun.number), tags))
        if len(waiting) == in_flight:
            arrive()
    while waiting:
        arrive()


def test_features_that_the_cloud_does_not_keep_are_not_known(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols(size=1_000_000)), 1)
    assert known(history) == set()


def test_no_more_is_kept_than_the_cloud_keeps(history: History) -> None:
    for rate in range(20):
        history.acknowledge(POSITION, coded(symbols(parameter=rate, size=LARGE)), 1)
    kept = [rate for rate in range(20) if known(history, parameter=rate)]
    assert kept == list(range(12, 20))

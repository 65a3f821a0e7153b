"""Only what was acknowledged on the connection in use, and lately, is built on."""

import numpy as np
import pytest

from edge_agent.history import LIFETIME, Coded, History
from splitserve.codec import REFERENCES_MAX, Symbols

POSITION, RATE = 2, 500


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
    for _ in range(LIFETIME + 1):
        assert history.begin(POSITION, RATE, 1).references
    assert not history.begin(POSITION, RATE, 1).references


def test_features_that_the_cloud_does_not_keep_are_not_known(history: History) -> None:
    history.acknowledge(POSITION, coded(symbols(size=1_000_000)), 1)
    assert known(history) == set()


def test_no_more_is_kept_than_the_cloud_keeps(history: History) -> None:
    history.acknowledge(POSITION, coded(*(symbols(i) for i in range(REFERENCES_MAX + 5))), 1)
    assert len(known(history)) == REFERENCES_MAX

import threading
import time

import pytest

from splitserve.bench.trace import Change, play, read_trace
from splitserve.errors import UsageError


def test_a_trace_is_read(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("# seconds,bits_per_second\n0,20e6\n30,1e6\n\n60, 0\n")
    assert read_trace(path) == [Change(0, 20e6), Change(30, 1e6), Change(60, 0)]


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "1\n", "1,2,3\n", "a,b\n", "0,-1\n", "-1,5\n", "0,nan\n", "0,inf\n",
     "0,1\n0,2\n", "5,1\n4,2\n", "\xff\xfe"],
)  # fmt: skip
def test_what_is_no_trace_is_refused(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"trace\.csv"):
        read_trace(path)


def test_a_missing_trace_is_called_wrongly(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.csv"):
        read_trace(tmp_path / "gone.csv")


def test_changes_are_played_at_their_times():
    seen, started = [], time.perf_counter()
    trace = [Change(0, 3.0), Change(0.1, 2.0), Change(0.2, 0.0)]
    play(trace, lambda rate: seen.append((rate, time.perf_counter() - started)), threading.Event())
    assert [rate for rate, _ in seen] == [3.0, 2.0, 0.0]
    for (_, at_s), change in zip(seen, trace, strict=True):
        assert change.at_s <= at_s + 0.001
        assert at_s <= change.at_s + 0.08


def test_playing_ends_when_it_is_stopped():
    stop = threading.Event()
    stop.set()
    seen = []
    play([Change(0, 1.0), Change(600, 2.0)], seen.append, stop)
    assert seen == []

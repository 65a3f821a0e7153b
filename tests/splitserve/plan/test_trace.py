"""Files of a link's rate over time, and their refusals."""

from pathlib import Path

import pytest

from splitserve.errors import UsageError
from splitserve.plan.trace import Change, read_trace, spans_s


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="latin-1")
    return path


def test_a_trace_is_read(tmp_path: Path):
    path = write(tmp_path, "# seconds,bits_per_second\n0,20e6\n30,1e6\n\n60, 0\n")
    assert read_trace(path) == [Change(0, 20e6), Change(30, 1e6), Change(60, 0)]


def test_the_last_rate_lasts_as_long_as_the_one_before():
    assert spans_s([Change(0, 1.0), Change(30, 2.0), Change(40, 3.0)]) == [30, 10, 10]
    assert spans_s([Change(7, 1.0)]) == [1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line `seconds,bits_per_second`"),
        ("# nothing\n", "no line"),
        ("1\n", "line 1: '1' is not `seconds,bits_per_second`"),
        ("0,1,2\n", "'0,1,2' is not"),
        ("# rates\n0,fast\n", "line 2: '0,fast' is not"),
        ("0,-5\n", "zero or more"),
        ("-1,5\n", "zero or more"),
        ("0,nan\n", "zero or more"),
        ("0,inf\n", "zero or more"),
        ("5,1e6\n5,2e6\n", "line 2: 5 s after 5 s"),
        ("5,1\n\n4,2\n", "line 3: 4 s after 5 s; the seconds must grow"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError, match=message) as refusal:
        read_trace(write(tmp_path, text))
    assert "trace.csv: " in str(refusal.value)


def test_a_missing_trace_is_called_wrongly(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.csv: cannot be read"):
        read_trace(tmp_path / "gone.csv")

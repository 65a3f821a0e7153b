"""Numbers with units: what is read, and what is refused with an example."""

import pytest

from splitserve.plan.units import (
    read_bytes,
    read_rate,
    read_rates,
    read_seconds,
    show_ms,
    show_rate,
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("5.85Mbit", 5.85e6), ("5.85 Mbit/s", 5.85e6), ("250kbit", 250e3), ("1gbps", 1e9),
        ("1e6", 1e6), ("800", 800), (".5Mb/s", 5e5), (2e6, 2e6), ("10mbits", 1e7),
    ],
)  # fmt: skip
def test_rates_are_bits_per_second(text: object, want: float):
    assert read_rate(text) == pytest.approx(want)


@pytest.mark.parametrize(
    ("text", "want"),
    [("50ms", 0.05), ("0.05", 0.05), ("2s", 2), ("150us", 150e-6), ("1min", 60), ("0", 0)],
)
def test_times_are_seconds(text: str, want: float):
    assert read_seconds(text) == pytest.approx(want)


@pytest.mark.parametrize(
    ("text", "want"), [("64MB", 64e6), ("64MiB", 2**26), ("65536", 65536), ("1.5GB", 1.5e9)]
)
def test_sizes_are_bytes(text: str, want: float):
    assert read_bytes(text) == pytest.approx(want)


@pytest.mark.parametrize("text", ["fast", "5.85Mbit/h", "", "5,85Mbit", "1Mbit 2Mbit", "nan"])
def test_what_is_no_rate_is_refused_with_an_example(text: str):
    with pytest.raises(ValueError, match=r"write it as 5\.85Mbit"):
        read_rate(text)


@pytest.mark.parametrize("text", ["5MB/s", "250kB", "1GBytes"])
def test_a_rate_in_bytes_is_refused(text: str):
    with pytest.raises(ValueError, match="write the rate in bits"):
        read_rate(text)


@pytest.mark.parametrize("text", ["0", "-1Mbit", "0Mbit"])
def test_a_rate_is_above_zero(text: str):
    with pytest.raises(ValueError, match="not above zero"):
        read_rate(text)


def test_a_time_is_not_negative():
    with pytest.raises(ValueError, match="zero or more"):
        read_seconds("-5ms")


def test_nothing_stays_nothing_and_lists_are_taken_apart():
    assert read_rate(None) is read_seconds(None) is read_bytes(None) is None
    assert read_rates("1Mbit, 250kbit") == [1e6, 250e3]


@pytest.mark.parametrize(
    ("rate", "want"),
    [(5.85e6, "5.85 Mbit/s"), (250e3, "250 kbit/s"), (2e9, "2 Gbit/s"), (12.0, "12 bit/s")],
)
def test_rates_are_shown_for_people(rate: float, want: str):
    assert show_rate(rate) == want


def test_times_are_shown_in_milliseconds():
    assert (show_ms(0.0123), show_ms(1.5)) == ("12.3 ms", "1,500 ms")

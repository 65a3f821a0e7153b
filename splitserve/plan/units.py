"""Numbers with units, as operators write them: 5.85Mbit, 50ms, 64MiB."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from splitserve.settings import split_commas

NUMBER = re.compile(r"([-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*([a-zµ/]*)", re.IGNORECASE)
PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
RATES = {
    f"{prefix}{unit}": factor
    for prefix, factor in PREFIXES.items()
    for unit in ("bit", "bit/s", "bits", "bits/s", "bps", "b/s")
} | {"": 1.0}
SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}
BYTES = {f"{prefix}b": factor for prefix, factor in PREFIXES.items()} | {
    "": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip


def read_rate(value: object) -> object:
    """Bits per second from `5.85Mbit`, `250kbit/s`, `1e6`; None passes."""
    if isinstance(value, str) and re.search(r"[kKMG]?(B|B/s|Bytes?)$", value.strip()):
        raise ValueError(f"{value!r} is in bytes; write the rate in bits, as 5.85Mbit or 250kbit")
    return _read(value, RATES, "5.85Mbit, 250kbit or 1e6 (bits per second)", is_positive=True)


def read_seconds(value: object) -> object:
    """Seconds from `50ms`, `0.05`, `2s`; None passes."""
    return _read(value, SECONDS, "50ms, 2s or 0.05 (seconds)")


def read_bytes(value: object) -> object:
    """Bytes from `64MB`, `64MiB`, `65536`; None passes."""
    return _read(value, BYTES, "64MB, 64MiB or 65536 (bytes)")


def read_rates(value: object) -> list[object]:
    """Several rates, comma-separated."""
    return [read_rate(part) for part in split_commas(value)]


def _read(
    value: object, units: Mapping[str, float], example: str, *, is_positive: bool = False
) -> object:
    if value is None:
        return None
    found = NUMBER.fullmatch(str(value).strip())
    factor = units.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ValueError(f"cannot read {value!r}; write it as {example}")
    number = float(found[1]) * factor
    if number < 0 or (is_positive and number == 0):
        raise ValueError(f"{value!r} is not {'above zero' if is_positive else 'zero or more'}")
    return number


Rate = Annotated[float | None, BeforeValidator(read_rate)]
Rates = Annotated[list[float], NoDecode, BeforeValidator(read_rates)]
Seconds = Annotated[float, BeforeValidator(read_seconds)]
MaybeSeconds = Annotated[float | None, BeforeValidator(read_seconds)]
MaybeBytes = Annotated[float | None, BeforeValidator(read_bytes)]


def show_rate(rate_bps: float) -> str:
    """Write a rate for a person."""
    for factor, name in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate_bps >= factor:
            return f"{rate_bps / factor:.3g} {name}"
    return f"{rate_bps:.3g} bit/s"


def show_ms(seconds: float) -> str:
    """Write a time for a person."""
    return f"{1e3 * seconds:,.{0 if seconds >= 0.9995 else 1}f} ms"

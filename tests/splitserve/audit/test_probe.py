"""A probe reads what is there, and nothing where nothing is."""

import numpy as np
import pytest

from splitserve.audit.probe import read_attribute
from splitserve.errors import UsageError

COUNT = 200


def sources(seed: int = 0) -> tuple[dict[str, np.ndarray], list[str]]:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2, COUNT)
    features = generator.normal(size=(COUNT, 30))
    features[:, 3] += 6 * codes
    values = {
        "features": features,
        "answers": generator.normal(size=(COUNT, 5)),
        "pixels": features + generator.normal(size=(COUNT, 30)),
    }
    return values, ["yes" if code else "no" for code in codes]


def test_features_that_hold_the_attribute_give_it_away():
    values, attribute = sources()
    found = read_attribute(values, attribute, "glasses", 0)
    assert found.entropy_bits == pytest.approx(1, abs=0.05)
    assert found.features.bits > 0.7
    assert found.features.low <= found.features.bits <= found.features.high <= 1.1
    assert found.features.balanced_accuracy > 0.95
    assert found.answers.bits < 0.1
    assert found.shuffled.bits < 0.1
    assert found.excess_bits == found.features.bits - max(0.0, found.answers.bits)


def test_the_same_seed_gives_the_same_probe():
    values, attribute = sources()
    assert read_attribute(values, attribute, "a", 3) == read_attribute(values, attribute, "a", 3)


@pytest.mark.parametrize("rare", [0, 3])
def test_an_attribute_that_hardly_varies_is_refused(rare: int):
    values, _ = sources()
    attribute = ["yes"] * rare + ["no"] * (COUNT - rare)
    with pytest.raises(UsageError, match="attribute glasses"):
        read_attribute(values, attribute, "glasses", 0)

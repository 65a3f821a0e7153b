"""Which inputs an exit answers: a budget that holds on any stream, and a floor that comes first."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.artifact import Estimate, Exit, ExitFloor, ExitRate, StoredFile
from splitserve.errors import UsageError
from splitserve.exits import GAIN, UploadBudget, find_floor, log_odds, require_floor

SHA = "0" * 64
SURE = Estimate(value=99, low=98, high=100)


def facts(**change: Any) -> Exit:
    """An exit whose confidences are uniform between 0 and 1 on the calibration's inputs."""
    rates = [
        ExitRate(upload=upload, threshold=upload / 100, early=SURE, answers=SURE)
        for upload in (95, 90, 70, 50, 30, 10, 5)
    ]
    floors = [
        ExitFloor(agreement=agreement, threshold=threshold, upload=100 * threshold)
        for agreement, threshold in ((99.0, 0.6), (98.0, 0.4), (90.0, 0.1))
    ]
    fields = {
        "graph": StoredFile(file="e1.onnx", sha256=SHA, bytes=1),
        "rates": tuple(rates), "floors": tuple(floors), "temperature": 1.0, "fitted_on": 100,
        "folds": 5, "inputs_sha256": SHA, "seed": 0,
    }  # fmt: skip
    return Exit(**{**fields, **change})


def share(budget: UploadBudget, confidences: np.ndarray) -> float:
    """Percent of a stream that is uploaded."""
    return 100 * float(np.mean([not budget.takes(float(one)) for one in confidences]))


@pytest.mark.parametrize("wanted", [10, 25, 50, 80, 95])
def test_the_threshold_starts_where_the_calibration_says(wanted: int):
    assert UploadBudget(facts(), wanted, 0.0).threshold == pytest.approx(wanted / 100, abs=0.03)


@pytest.mark.parametrize("wanted", [10, 30, 50, 70, 90])
@pytest.mark.parametrize("power", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_the_share_holds_on_streams_that_are_easier_or_harder(wanted: int, power: float):
    """Powers below one make every input surer, powers above one less sure."""
    confidences = np.random.default_rng(0).random(2000) ** power
    assert share(UploadBudget(facts(), wanted, 0.0), confidences) == pytest.approx(wanted, abs=3)


def test_the_share_holds_while_a_stream_changes():
    generator = np.random.default_rng(1)
    parts = [generator.random(500) ** power for power in (1, 0.2, 5, 1)]
    assert share(UploadBudget(facts(), 60, 0.0), np.concatenate(parts)) == pytest.approx(60, abs=3)
    runs = np.repeat(generator.random(40), 50)  # a scene at a time, of one hardness each
    assert share(UploadBudget(facts(), 60, 0.0), runs) == pytest.approx(60, abs=3)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=400),
    st.floats(1, 99),
)
def test_the_share_is_as_near_as_the_threshold_has_moved_whatever_the_stream(
    confidences: list[float], wanted: float
):
    budget = UploadBudget(facts(), wanted, 0.0)
    before = log_odds(budget.threshold)
    seen = share(budget, np.array(confidences))
    step = GAIN * (log_odds(0.95) - log_odds(0.05))
    moved = abs(log_odds(budget.threshold) - before)
    assert abs(seen - wanted) <= 100 * moved / (step * len(confidences)) + 1e-3


def test_the_floor_comes_before_the_budget():
    budget = UploadBudget(facts(), 20, 0.6)
    confidences = np.random.default_rng(2).random(1000)
    taken = np.array([budget.takes(float(one)) for one in confidences])
    assert confidences[taken].min() >= 0.6
    assert 100 * (1 - taken.mean()) == pytest.approx(60, abs=4)
    assert budget.counts.upload == pytest.approx(100 * (1 - taken.mean()))


def test_of_what_the_floor_cost_no_more_than_twenty_uploads_are_made_good_later():
    budget = UploadBudget(facts(), 50, 0.6)
    for _ in range(500):
        assert not budget.takes(0.3)
    later = 0.6 + 0.4 * np.random.default_rng(3).random(1000)
    assert share(budget, later) == pytest.approx(50, abs=5)
    assert share(budget, later) == pytest.approx(50, abs=1)


@pytest.mark.parametrize("wanted", [61, 63, 66])
def test_a_budget_just_above_what_the_floor_allows_is_met(wanted: int):
    confidences = np.random.default_rng(4).random(3000)
    assert share(UploadBudget(facts(), wanted, 0.6), confidences) == pytest.approx(wanted, abs=2)


def test_a_budget_of_everything_answers_none_early_and_of_nothing_all_above_the_floor():
    everything, nothing = (UploadBudget(facts(), budget, 0.4) for budget in (100, 0))
    for confidence in (0.0, 0.39, 0.41, 0.9, 1.0) * 50:
        assert not everything.takes(confidence)
        assert nothing.takes(confidence) == (confidence >= 0.4)


def test_a_confidence_that_is_no_number_is_uploaded_and_moves_nothing():
    budget = UploadBudget(facts(), 50, 0.0)
    before = budget.threshold
    assert not budget.takes(math.nan)
    assert budget.threshold == before
    assert (budget.counts.inputs, budget.counts.early) == (1, 0)


def test_the_floor_is_the_nearest_agreement_that_is_at_least_as_high():
    assert find_floor(facts(), 98).threshold == 0.4
    assert find_floor(facts(), 97).threshold == 0.4
    assert find_floor(facts(), 98.5).threshold == 0.6
    assert find_floor(facts(), 0).threshold == 0
    assert find_floor(facts(), 99.5) is None
    with pytest.raises(UsageError, match=r"block keeps 99.5 % .* keeps: 99, 98, 90.*--exit-agree"):
        require_floor(facts(), 99.5, "block")


def test_rates_that_contradict_each_other_are_refused():
    good = facts().rates
    for bad in ((good[1], good[0]), (good[0], good[0])):
        with pytest.raises(ValueError, match="do not fall with the share"):
            facts(rates=bad)
    rising = (good[0], good[1].model_copy(update={"threshold": 0.99}))
    with pytest.raises(ValueError, match="do not fall with the share"):
        facts(rates=rising)

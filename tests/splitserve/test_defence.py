"""What a defence does to features, and that manifests hold only defences that fit."""

import numpy as np
import pytest
from pydantic import ValidationError

from splitserve.artifact import Cut, Noise, Rounding, Subset, Withdrawn
from splitserve.defence import defend
from splitserve.errors import UsageError
from splitserve.tensors import TensorSpec

SPEC = TensorSpec(name="t", dtype="float32", shape=(1, 4, 3, 3))
FEATURES = np.random.default_rng(0).normal(size=(1, 4, 3, 3)).astype(np.float32)


def test_without_a_defence_nothing_is_done():
    assert defend(None, [FEATURES])[0] is FEATURES


def test_noise_is_fresh_on_every_request_and_of_the_right_strength():
    large = np.zeros((1, 64, 64), np.float32)
    noise = Noise(asked="noise:1rms", deviations=(0.5,))
    (one,), (other,) = defend(noise, [large]), defend(noise, [large])
    assert one.dtype == np.float32
    assert one.std() == pytest.approx(0.5, rel=0.05)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_steps_round_to_their_multiples():
    (found,) = defend(Rounding(asked="step:0.5", steps=(0.5,)), [FEATURES])
    assert np.abs(found - FEATURES).max() <= 0.25
    assert (found * 2 == np.round(found * 2)).all()


def test_channels_that_are_left_out_travel_as_constants():
    subset = Subset(asked="channels:0.5", axes=(1,), constants=((None, 0.25, None, -1.0),))
    before = FEATURES.copy()
    (found,) = defend(subset, [FEATURES])
    assert (found[:, [0, 2]] == FEATURES[:, [0, 2]]).all()
    assert (found[:, 1] == 0.25).all()
    assert (found[:, 3] == -1).all()
    assert (before == FEATURES).all()


def test_nothing_crosses_a_cut_that_is_withdrawn():
    with pytest.raises(UsageError, match="withdrawn"):
        defend(Withdrawn(), [FEATURES])


@pytest.mark.parametrize(
    "defence",
    [
        Noise(asked="noise:1rms", deviations=(0.5, 0.5)),
        Rounding(asked="step:1", steps=(0.5, 1.0)),
        Subset(asked="channels:0.5", axes=(1,), constants=((None, 0.5),)),
        Subset(asked="channels:0.5", axes=(7,), constants=((None, 0.5, 0.5, 0.5),)),
    ],
)
def test_a_defence_of_another_cut_is_no_part_of_a_manifest(defence: Noise | Rounding | Subset):
    with pytest.raises(ValidationError, match="the defence of t"):
        Cut(name="t", egress=(SPEC,), macs_share=0.5, defence=defence)


def test_integers_take_no_noise():
    spec = SPEC.model_copy(update={"dtype": "int64"})
    with pytest.raises(ValidationError, match="no floating-point tensor"):
        Cut(
            name="t", egress=(spec,), macs_share=0.5,
            defence=Noise(asked="noise:1rms", deviations=(0.5,)),
        )  # fmt: skip

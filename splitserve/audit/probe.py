"""What features say about a declared attribute, read by a linear probe.

Usable information (Xu and others, ICLR 2020) of a logistic regression on principal components: the
attribute's entropy less the held-out cross-entropy, in bits. A stronger reader gets at least as
much. What the model's answers say is no secret of the features: the excess over that counts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from splitserve.audit.document import Bits, Probe
from splitserve.audit.metrics import bootstrap_mean
from splitserve.errors import UsageError

FOLDS = 5
COMPONENTS = 64
REGULARISATIONS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of which the training folds choose
LEAST_CHANCE = 1e-6

Doubles = npt.NDArray[np.float64]


def read_attribute(
    sources: Mapping[str, Doubles], attribute: Sequence[str], name: str, seed: int
) -> Probe:
    """Probe features, answers and pixels for an attribute.

    Args:
        sources: `features`, `answers` and `pixels`, (n, values) each.
        attribute: value of each picture.
        name: of the attribute.
        seed: of folds, shuffling and bootstrap.

    Raises:
        UsageError: fewer than two values, or one that too few pictures have.
    """
    check_attribute(attribute, name)
    values, codes, counts = np.unique(np.array(attribute), return_inverse=True, return_counts=True)
    shares = counts / counts.sum()
    shuffled = np.random.default_rng(seed).permutation(codes)
    features = _bits(sources["features"], codes, seed)
    answers = _bits(sources["answers"], codes, seed)
    return Probe(
        attribute=name,
        values=len(values),
        pictures=len(codes),
        entropy_bits=float(-(shares * np.log2(shares)).sum()),
        features=features,
        answers=answers,
        pixels=_bits(sources["pixels"], codes, seed),
        shuffled=_bits(sources["features"], shuffled, seed),
        excess_bits=features.bits - max(0.0, answers.bits),
    )


def check_attribute(attribute: Sequence[str], name: str) -> None:
    """Refuse an attribute that says nothing.

    Raises:
        UsageError: fewer than two values, or one that too few pictures have.
    """
    values, counts = np.unique(np.array(attribute), return_counts=True)
    if len(values) < 2 or counts.min() < FOLDS:
        rare = values[counts.argmin()]
        raise UsageError(
            f"attribute {name}: {len(values)} values, {rare} on {counts.min()} of {len(attribute)}"
            f" pictures; a probe needs two values on at least {FOLDS} pictures each"
        )


def _bits(rows: Doubles, codes: npt.NDArray[np.intp], seed: int) -> Bits:
    components = min(COMPONENTS, rows.shape[1], len(rows) * (FOLDS - 1) // FOLDS - 1)
    reader = make_pipeline(
        StandardScaler(),
        PCA(components, svd_solver="full"),
        GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": REGULARISATIONS},
            scoring="neg_log_loss",
            cv=StratifiedKFold(FOLDS - 1, shuffle=True, random_state=seed),
        ),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chances = cross_val_predict(reader, rows, codes, cv=folds, method="predict_proba")
    own = np.maximum(chances[np.arange(len(codes)), codes], LEAST_CHANCE)
    prior = (np.bincount(codes) / len(codes))[codes]
    gained = bootstrap_mean((np.log2(own) - np.log2(prior)).tolist(), seed)
    return Bits(
        bits=gained.value,
        low=gained.low,
        high=gained.high,
        balanced_accuracy=float(balanced_accuracy_score(codes, chances.argmax(axis=1))),
    )

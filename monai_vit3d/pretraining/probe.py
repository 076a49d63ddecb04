"""Probe frozen features by logistic regression, nearest neighbours or ridge regression.

Each probe is scikit-learn's, behind a StandardScaler; both are fitted on the training part. Its one setting is chosen
on the validation part; the test part is scored once. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from monai_vit3d.data.csv_labels import check_classes
from monai_vit3d.data.errors import UsageError, install_extra
from monai_vit3d.data.volume import Array
from monai_vit3d.metrics import accuracy, auc, mean_absolute_error, r2
from monai_vit3d.metrics.checks import require_finite

from .features import Features

LOGISTIC_C = tuple(10.0**k for k in range(-5, 3))
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
RIDGE_ALPHA = tuple(10.0**k for k in range(-1, 7))
TEMPERATURE = 0.07  # of the neighbours' votes, Wu et al. 2018

Parts = tuple[Features, Features, Features]
Scores = dict[str, Callable[[Any, Any], float]]
PROBE_SECTIONS = ("train", "validation", "test")
# the first of them is what the setting is chosen by
CLASS_SCORES: Scores = {
    "auc": lambda predictions, labels: auc(predictions, labels, "multi-class"),
    "accuracy": lambda predictions, labels: accuracy(predictions, labels, "multi-class"),
}
VALUE_SCORES: Scores = {"r2": r2, "mae": mean_absolute_error}


@dataclass(frozen=True)
class ProbeScore:
    """Scores of a probe.

    ``scores`` are the test part's, by name. ``chosen`` is the value of ``setting`` that was best on the validation
    part, ``validation`` has the score there of every value that was tried; ``cases`` counts training, validation and
    test; ``predictions`` are of the test part, probabilities of classes ``(N, K)`` or values.
    """

    probe: str
    features: str
    setting: str
    chosen: float
    validation: dict[float, float]
    scores: dict[str, float]
    cases: tuple[int, int, int]
    predictions: Array = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, float]:
        """Return the test scores, the chosen value and its validation score by name, for a log."""
        best = {self.setting: float(self.chosen), "validation": self.validation[self.chosen]}
        return {f"{self.probe}_{name}": value for name, value in {**self.scores, **best}.items()}


def logistic_probe(
    train: Features, validation: Features, test: Features, grid: Sequence[float] = LOGISTIC_C
) -> ProbeScore:
    """Fit logistic regression with L2 penalty 1 / C; C is chosen by the validation AUC, the lowest of equals.

    Args:
        train: features with class numbers ``(N,)``.
        validation: for choosing C only.
        test: for the scores ``"auc"`` (macro, one against the rest) and ``"accuracy"`` only.
        grid: values of C to try.

    Raises:
        UsageError: parts that do not fit together, labels that are not class numbers, an empty grid, or no
            scikit-learn.
        DatasetError: a part has no case of a class.
    """
    _require_sklearn()
    from sklearn.linear_model import LogisticRegression

    def build(c: float) -> Any:
        return _scaled(LogisticRegression(C=c, max_iter=2000))

    _require_classes(train, validation, test)
    return _probe("logistic", "C", build, sorted(grid), (train, validation, test), CLASS_SCORES, "predict_proba")


def knn_probe(train: Features, validation: Features, test: Features, grid: Sequence[int] = NEIGHBOURS) -> ProbeScore:
    """Classify by the k nearest neighbours by cosine; k is chosen by the validation AUC, the lowest of equals.

    Votes weigh ``exp(cosine / 0.07)`` (Wu et al. 2018, arXiv:1805.01978, section 3.4). Features are centred by the
    training part's mean (CL2N of Wang et al. 2019, arXiv:1911.04623): volumes of one organ share a large mean feature,
    with which all cosines are near 1.

    Args:
        train: features with class numbers ``(N,)``.
        validation: for choosing k only.
        test: for the scores ``"auc"`` (macro, one against the rest) and ``"accuracy"`` only.
        grid: values of k to try; those above the number of training cases are skipped.

    Raises:
        UsageError: parts that do not fit together, labels that are not class numbers, an empty grid, or no
            scikit-learn.
        DatasetError: a part has no case of a class.
    """
    _require_sklearn()
    from sklearn.neighbors import KNeighborsClassifier

    def build(k: int) -> Any:
        neighbours = KNeighborsClassifier(k, weights=_votes, metric="cosine", algorithm="brute")
        return _scaled(neighbours, with_std=False)

    _require_classes(train, validation, test)
    fitting = sorted(k for k in grid if k <= len(train.values))
    return _probe("knn", "k", build, fitting, (train, validation, test), CLASS_SCORES, "predict_proba")


def ridge_probe(
    train: Features, validation: Features, test: Features, grid: Sequence[float] = RIDGE_ALPHA
) -> ProbeScore:
    """Fit linear regression with L2 penalty alpha; alpha is chosen by the validation R², the highest of equals.

    Args:
        train: features with values ``(N,)`` or ``(N, L)``.
        validation: for choosing alpha only.
        test: for the scores ``"r2"`` and ``"mae"`` (mean absolute error, in the labels' unit) only.
        grid: values of alpha to try.

    Raises:
        UsageError: parts that do not fit together, an empty grid, or no scikit-learn.
        ScoreError: labels that are NaN or infinite, or all equal in the validation or the test part.
    """
    _require_sklearn()
    from sklearn.linear_model import Ridge

    def build(alpha: float) -> Any:
        return _scaled(Ridge(alpha=alpha))

    parts = (train, validation, test)
    _require_same(parts)
    return _probe("ridge", "alpha", build, sorted(grid, reverse=True), parts, VALUE_SCORES, "predict")


def knn_value_probe(
    train: Features, validation: Features, test: Features, grid: Sequence[int] = NEIGHBOURS
) -> ProbeScore:
    """Predict the mean of the k nearest neighbours by cosine; k is chosen by the validation R², the lowest of equals.

    Weights and features are those of :func:`knn_probe`, scores those of :func:`ridge_probe`.

    Args:
        train: features with values ``(N,)`` or ``(N, L)``.
        validation: for choosing k only.
        test: for the scores ``"r2"`` and ``"mae"`` only.
        grid: values of k to try; those above the number of training cases are skipped.

    Raises:
        UsageError: as :func:`ridge_probe`.
        ScoreError: as :func:`ridge_probe`.
    """
    _require_sklearn()
    from sklearn.neighbors import KNeighborsRegressor

    def build(k: int) -> Any:
        neighbours = KNeighborsRegressor(k, weights=_votes, metric="cosine", algorithm="brute")
        return _scaled(neighbours, with_std=False)

    parts = (train, validation, test)
    _require_same(parts)
    fitting = sorted(k for k in grid if k <= len(train.values))
    return _probe("knn", "k", build, fitting, parts, VALUE_SCORES, "predict")


def _probe(
    name: str, setting: str, build: Callable[[Any], Any], grid: Sequence[Any], parts: Parts, scores: Scores, method: str
) -> ProbeScore:
    """Fit a probe for each value of the grid, and score the best on the validation part."""
    if not grid:
        raise UsageError(f"grid holds no {setting} that fits {len(parts[0].values)} training cases; expected one.")
    train, validation, test = ((part.values.astype(np.float64), part.labels) for part in parts)
    score = next(iter(scores.values()))
    models = {value: build(value).fit(*train) for value in grid}
    by_value = {value: score(getattr(model, method)(validation[0]), validation[1]) for value, model in models.items()}
    chosen = max(by_value, key=lambda value: by_value[value])  # the first of equals, in the grid's order
    predictions = getattr(models[chosen], method)(test[0])
    test_scores = {key: function(predictions, test[1]) for key, function in scores.items()}
    cases = (len(parts[0].values), len(parts[1].values), len(parts[2].values))
    return ProbeScore(name, parts[0].description, setting, chosen, by_value, test_scores, cases, predictions)


def _scaled(estimator: Any, with_std: bool = True) -> Any:
    """Put an estimator behind a scaler of its features."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(with_std=with_std), estimator)


def _votes(distances: Array) -> Array:
    """Compute the weights of neighbours from ``(N, k)`` cosine distances; only their ratios matter."""
    return np.exp((distances.min(1, keepdims=True) - distances) / TEMPERATURE)


def _require_same(parts: Parts) -> None:
    """Refuse parts of different encoders or poolings, and parts with more or fewer labels than features."""
    for name, part in zip(PROBE_SECTIONS, parts):
        if part.values.ndim != 2 or len(part.values) != len(part.labels) or not len(part.values):
            raise UsageError(
                f"section {name!r}: features {part.values.shape} and labels {part.labels.shape}; expected (N, F) and "
                "as many labels, one or more."
            )
        require_finite(np.asarray(part.labels, np.float64), f"labels of section {name!r}")
    kinds = [(part.values.shape[1], part.description) for part in parts]
    if len(set(kinds)) > 1:
        listed = "; ".join(f"{name}: {width} of {text}" for name, (width, text) in zip(PROBE_SECTIONS, kinds))
        raise UsageError(f"features differ in kind ({listed}). Extract all sections with one encoder and pooling.")


def _require_classes(train: Features, validation: Features, test: Features) -> None:
    """Refuse labels that are not class numbers, and sections that lack a class."""
    parts = (train, validation, test)
    _require_same(parts)
    for name, part in zip(PROBE_SECTIONS, parts):
        if part.labels.ndim != 1:
            raise UsageError(f"section {name!r}: labels {part.labels.shape}; expected one class number a case.")
    classes = 1 + int(max(part.labels.max() for part in parts))
    for name, part in zip(PROBE_SECTIONS, parts):
        check_classes(part.labels.tolist(), classes, name)


def _require_sklearn() -> None:
    if find_spec("sklearn") is None:
        raise UsageError(f"probes need scikit-learn, which is not installed: {install_extra('ssl')}.")

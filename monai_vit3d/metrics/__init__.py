"""Score classifiers as MedMNIST does, gather the scores in MONAI's engines, and calibrate probabilities."""

from .calibration import fit_temperature
from .classification import accuracy, auc, decode, expected_calibration_error, negative_log_likelihood
from .medmnist_scores import write_medmnist_scores
from .regression import mean_absolute_error, r2
from .score import SCORES, ClassificationScore
from .table import PredictionTable

__all__ = [
    "SCORES",
    "ClassificationScore",
    "PredictionTable",
    "accuracy",
    "auc",
    "decode",
    "expected_calibration_error",
    "fit_temperature",
    "mean_absolute_error",
    "negative_log_likelihood",
    "r2",
    "write_medmnist_scores",
]

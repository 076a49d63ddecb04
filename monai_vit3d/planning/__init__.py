"""Look at labelled data, and plan and write the bundle that learns from them."""

from .dataset import LabelledCase, LabelledDataset
from .examine import Examination, examine
from .init import InitReport, plan_bundle
from .layouts import LAYOUTS, read_dataset
from .verify import Problem

__all__ = [
    "Examination",
    "InitReport",
    "LAYOUTS",
    "LabelledCase",
    "LabelledDataset",
    "Problem",
    "examine",
    "plan_bundle",
    "read_dataset",
]

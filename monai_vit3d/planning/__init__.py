"""Look at labelled data, and plan and write the bundle that learns from them."""

from .dataset import LabelledCase, LabelledDataset
from .examine import Examination, examine
from .layouts import LAYOUTS, read_dataset
from .verify import Problem

__all__ = ["LAYOUTS", "Examination", "LabelledCase", "LabelledDataset", "Problem", "examine", "read_dataset"]

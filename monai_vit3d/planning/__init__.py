"""Look at labelled data, and plan and write the bundle that learns from them."""

from .dataset import LabelledCase, LabelledDataset
from .layouts import LAYOUTS, read_dataset

__all__ = ["LAYOUTS", "LabelledCase", "LabelledDataset", "read_dataset"]

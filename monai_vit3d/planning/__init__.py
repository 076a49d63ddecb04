"""Look at labelled data, and plan and write the bundle that learns from them."""

from .dataset import LabelledCase, LabelledDataset

__all__ = ["LabelledCase", "LabelledDataset"]

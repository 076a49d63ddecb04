"""Read labelled data sets in the layouts that they come in: a file and a row of ``LAYOUTS`` for each."""

from .table import LAYOUTS, Layout, read_dataset

__all__ = ["LAYOUTS", "Layout", "read_dataset"]

"""Inferers: how a network is run over a volume."""

from .autocast import AutocastInferer

__all__ = ["AutocastInferer"]

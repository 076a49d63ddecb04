"""The errors of this package that speak of files; every message says what came, what is needed, what to do."""

from .printable import excerpt


class Vit3dError(Exception):
    """Root of the package's own errors."""


class DatasetError(Vit3dError, FileNotFoundError):
    """A data set or some of its cases are not where they should be."""


class WeightsError(Vit3dError, ValueError):
    """A checkpoint is missing, damaged or of another architecture."""


class ImageError(Vit3dError, ValueError):
    """An image cannot be used as it is."""


class ScoreError(Vit3dError, ValueError):
    """Scores or labels from which no metric can be computed."""


class BundleError(Vit3dError, ValueError):
    """A bundle cannot be used as it is, or is not safe to use.

    Args:
        message: what is wrong with it.
        details: further lines.

    Attributes:
        lines: all of them; ``str()`` joins them.
    """

    def __init__(self, message: str, *details: str) -> None:
        # they quote a stranger's files, whose texts may be of any length and hold any character
        self.lines = [excerpt(line, 2000) for line in (message, *details)]
        super().__init__("\n".join(self.lines))


class UsageError(Vit3dError, ValueError):
    """What was asked for cannot be done as asked: arguments, names that clash."""


class TrainingCollapsed(Vit3dError, RuntimeError):
    """What a network learns has collapsed: its features no longer tell cases apart."""


class TrainingDiverged(Vit3dError, RuntimeError):
    """A training's loss or weights are no longer finite: nothing that it would save could be used."""

"""The errors of this package; every message says what came, what is expected and what to do."""

from .printable import excerpt


class Vit3dError(Exception):
    """Root of the package's own errors."""


class DatasetError(Vit3dError, FileNotFoundError):
    """A data set or some of its cases are missing or cannot be used."""


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
    """Arguments do not fit each other or the data, or names clash."""


class TrainingCollapsed(Vit3dError, RuntimeError):
    """A network in training has lost what it had learnt: its features no longer differ, or a class' score fell."""


class TrainingDiverged(Vit3dError, RuntimeError):
    """A training's loss or weights are no longer finite, so that its checkpoints would be useless."""


class TrainingFailed(Vit3dError, RuntimeError):
    """A training ended by an error of another library, which the message quotes."""


# top-level modules that extras of setup.cfg install
MODULES_OF_EXTRAS = {
    **dict.fromkeys(("ignite", "fire", "jsonschema", "tensorboard"), "bundle"),
    **dict.fromkeys(("pydicom", "highdicom", "gdcm"), "dicom"),
    **dict.fromkeys(("nilearn", "matplotlib"), "viz"),
    **{"argcomplete": "completion", "mcp": "serve", "medmnist": "medmnist", "openvino": "cpu"},
    **{"peft": "peft", "sklearn": "ssl"},
}


def explain_missing_module(error: ModuleNotFoundError) -> str | None:
    """Say which extra has the module that is not installed; None if it is of none."""
    module = (error.name or "").partition(".")[0]
    extra = MODULES_OF_EXTRAS.get(module)
    return extra and f"this needs the package {module}, which is not installed: {install_extra(extra)}."


def install_extra(extra: str) -> str:
    """Advise to install this package with an extra of its setup.cfg, as a part of an error's sentence."""
    return f"install this package with its {extra!r} extra"

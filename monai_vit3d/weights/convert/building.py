"""Turn the errors of building a network into this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from monai_vit3d.data.errors import UsageError, Vit3dError


@contextmanager
def options_checked(name: str) -> Iterator[None]:
    """Report options that a network cannot be built with as the caller's error, with the weights' name.

    Args:
        name: where the weights came from, for messages.

    Raises:
        UsageError: in place of any other ValueError.
    """
    try:
        yield
    except Vit3dError:
        raise
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error

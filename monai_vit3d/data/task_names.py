"""Name classification tasks, by our names and by MedMNIST's."""

from __future__ import annotations

TASKS = ("multi-class", "multi-label", "ordinal", "regression")
TASK_ALIASES = {
    "binary-class": "multi-class",
    "multi-label, binary-class": "multi-label",
    "ordinal-regression": "ordinal",
}


def resolve_task(name: str) -> str:
    """Translate MedMNIST's name of a task to ours.

    Raises:
        ValueError: an unknown task.
    """
    task = TASK_ALIASES.get(name, name)
    if task not in TASKS:
        raise ValueError(f"task={name!r}; expected one of {', '.join(map(repr, (*TASKS, *TASK_ALIASES)))}.")
    return task

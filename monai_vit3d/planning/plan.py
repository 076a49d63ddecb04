"""Decide a training's recipe: a table of rules, each from the data's fingerprint and the decisions before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.json_shape import Shape, shape_violation
from monai_vit3d.data.nearest import did_you_mean


@dataclass(frozen=True)
class Evidence:
    """What a recipe is decided from.

    Args:
        fingerprint: what :func:`~monai_vit3d.planning.examine` measured.
        subjects: how many subjects the training cases are of.
        folds: number of folds that the data have of their own; 0 where they have none.
        memory_bytes: of the device that will train; None where it was not given.
        pretrained: file or name of an encoder to start from, or None.
        encoder_options: what that file does not show.
        stated: what is published of that encoder's input: ``orientation``, ``spacing_mm``, ``intensity`` of a channel.
        encoder: that encoder's architecture, as :func:`~monai_vit3d.networks.model_args` returns it; else empty.
    """

    fingerprint: Mapping[str, Any]
    subjects: int
    folds: int = 0
    memory_bytes: int | None = None
    pretrained: str | None = None
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """One decision of a recipe: its key, its value in JSON's types, and why, in one line."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class PlanRule:
    """How one key is decided.

    Args:
        key: the name of the decision.
        shape: the types that a value of it may have, as of :func:`~monai_vit3d.data.json_shape.shape_violation`.
        decide: value and reason, from the evidence and the values decided so far.
    """

    key: str
    shape: Shape
    decide: Callable[[Evidence, Mapping[str, Any]], tuple[Any, str]]


# what is wrong with a given value, and what is expected; "" if nothing is
Check = Callable[[Any, Evidence, Mapping[str, Any]], str]


def fixed(value: Any, reason: str) -> Callable[[Evidence, Mapping[str, Any]], tuple[Any, str]]:
    """Return a rule that always decides the same."""
    return lambda evidence, plan: (value, reason)


class TrainingPlan(Mapping[str, Any]):
    """A recipe: the values of its decisions by their keys, in the order in which they were made."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = tuple(decisions)
        self._values = {decision.key: decision.value for decision in decisions}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def lines(self) -> list[str]:
        """Return one line for each decision: key, value and reason."""
        width = max(len(decision.key) for decision in self.decisions)
        return [f"{d.key:{width}s}  {show_value(d.value)}  ({d.reason})" for d in self.decisions]


def show_value(value: Any) -> str:
    """Write a value as a user would give it: YAML's flow style, on one line."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False).split("\n...")[0].strip()


def decide_all(
    rules: Sequence[PlanRule],
    evidence: Evidence,
    overrides: Mapping[str, Any],
    checks: Mapping[str, Check],
) -> TrainingPlan:
    """Apply rules in order; a value that is given replaces its rule, and the rules after it follow.

    Args:
        rules: each may read what those before it decided.
        evidence: what is known of the data and the machine.
        overrides: values by key.
        checks: of given values, by key.

    Raises:
        UsageError: a key that no rule has, or a value of another type or that cannot be.
    """
    by_key = {rule.key: rule for rule in rules}
    for key in overrides:
        if key not in by_key:
            hint = did_you_mean(key, by_key)
            raise UsageError(f"{key}: no choice of the plan has this name.{hint} They are {', '.join(by_key)}.")
    values: dict[str, Any] = {}
    decisions = []
    for rule in rules:
        if rule.key in overrides:
            value, reason = overrides[rule.key], "given"
            fault = shape_violation(value, rule.shape, rule.key)
            if not fault and rule.key in checks and (text := checks[rule.key](value, evidence, values)):
                fault = f"{rule.key}={show_value(value)}: {text}"
            if fault:
                raise UsageError(f"{fault}.")
        else:
            value, reason = rule.decide(evidence, values)
        values[rule.key] = value
        decisions.append(Decision(rule.key, value, reason))
    return TrainingPlan(decisions)

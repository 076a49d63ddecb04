"""Published models by name: the entries of ``weights/published.yaml``, read without loading PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import UsageError

_TABLE = Path(__file__).parents[1] / "weights" / "published.yaml"


@dataclass(frozen=True)
class Licence:
    """Under which terms a model stands; None is not known.

    Attributes:
        weights: of the weights.
        code: of their authors' code, of which none is used here.
        commercial: whether the weights may be used commercially.
        gated: whether the hub asks for a request first.
    """

    weights: str | None = None
    code: str | None = None
    commercial: bool | None = None
    gated: bool | None = None


@dataclass(frozen=True)
class PublishedModel:
    """An entry of ``weights/published.yaml``, whose head says what each field means; None is not stated anywhere known.

    Attributes:
        name: its key.
        title: for people.
        paper: an arXiv number, a DOI or a reference.
        repository: of the hub, ``owner/name``.
        file: in the repository.
        revision: a commit of the repository.
        sha256: of the file.
        family: of :func:`~monai_vit3d.weights.read_source`; None finds it by the keys.
        take: which of several networks in the file; None takes the averaged one.
        options: keywords of :class:`~monai_vit3d.networks.VisionTransformer3D` that no tensor shows.
        feature: what its authors take as the vector of an input.
        pool: options of the attention pool that the file has beside the encoder, as ``{"num_heads": 12}``; {} if none.
        combiner: the network over the windows' vectors, in a file of its own, as an entry; None if there is none.
        licence: of weights and code.
        checked: ``"layout"``, ``"file"`` or None.
        beforehand: what other programs have to do to a scan.
        recipe: how a scan becomes the network's input, see :mod:`monai_vit3d.weights.recipes`.
        stated: where recipe, feature and licence were read.
        unsupported: why the published file cannot be loaded; "" if it can.
    """

    name: str
    title: str
    repository: str
    licence: Licence
    paper: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    family: str | None = None
    take: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    feature: str | None = None
    pool: dict[str, Any] = field(default_factory=dict)
    combiner: PublishedModel | None = None
    checked: str | None = None
    beforehand: str | None = None
    recipe: dict[str, Any] | None = None
    stated: tuple[str, ...] = ()
    unsupported: str = ""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels and ``(H, W, D)`` of the network's input; of video's three channels where no option says less."""
        channels = self.options.get("in_chans", 3 if self.family == "hf_vjepa2" else 1)
        return (channels, *self.options["img_size"])

    @property
    def statistics(self) -> dict[str, tuple[float, ...]]:
        """``mean`` and ``std`` of each channel that the recipe subtracts and divides by; 0 and 1 where it has none."""
        steps = (self.recipe or {}).get("steps") or ()
        stated = next((step["standardise"] for step in steps if "standardise" in step), None)
        channels = self.input_size[0]
        stated = stated or {"mean": [0.0] * channels, "std": [1.0] * channels}
        return {key: tuple(values) for key, values in stated.items()}

    @property
    def unstated(self) -> list[str]:
        """Fields that the recipe needs and its authors do not state, by place; without any recipe ``["recipe"]``."""
        return ["recipe"] if self.recipe is None else [place for _, _, place in empty_fields(self.recipe)]


@lru_cache(maxsize=1)
def published_models() -> dict[str, PublishedModel]:
    """Return all entries by name, in the file's order."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table = yaml.load(_TABLE.read_text(encoding="utf-8"), loader)
    return {name: _entry(name, row) for name, row in table.items()}


def published_model(name: str) -> PublishedModel:
    """Return the entry of a name.

    Raises:
        UsageError: an unknown name; the message has those like it.
    """
    models = published_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, 3, 0.4) or [*models]
        raise UsageError(f"{name!r} is no published model that is known here; expected one such as {', '.join(near)}.")
    return models[name]


def empty_fields(recipe: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the fields of a recipe that are None: the mapping that has one, its key, and its place in words."""
    for key in recipe:
        if recipe[key] is None:
            yield recipe, key, key
    for row in recipe.get("steps") or ():
        for step, options in row.items():
            yield from ((options, key, f"{key} of {step}") for key in options if options[key] is None)


def _entry(name: str, row: dict[str, Any]) -> PublishedModel:
    fields = {key: value for key, value in row.items() if value is not None}
    if "combiner" in fields:
        shared = {key: row[key] for key in ("title", "paper", "repository", "licence", "stated")}
        fields["combiner"] = _entry(f"{name}.combiner", {**shared, **row["combiner"]})
    fields |= {"licence": Licence(**row["licence"]), "stated": tuple(row["stated"])}
    return PublishedModel(name=name, **fields)

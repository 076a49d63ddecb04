"""The tools that are served: each calls the Python function behind a verb of the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.info import describe_bundle, list_bundles
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.embed_folder import embed_folder
from monai_vit3d.pipeline.embedder import Embedder
from monai_vit3d.pipeline.folder import predict_folder

from .arguments import arguments_schema

if TYPE_CHECKING:
    from monai_vit3d.pipeline.case_runner import Summary
    from monai_vit3d.pipeline.plan import Plan

OnCaseDone = Callable[[int, int, str], None]  # how many are done, of how many, and what became of the last
_OF_CASE = ("name", "status", "error", "output", "warnings", "suspicious", "outliers", "prediction")


@dataclass(frozen=True, eq=False)
class ServedTool:
    """A tool: what it does, whose arguments it takes, and how it is called.

    Args:
        description: for who chooses among tools.
        functions: whose arguments it takes, by their signatures and docstrings.
        run: is given the arguments, and a function to call after each case; returns an answer that JSON can hold.
        without: arguments of the functions that are not the caller's.
        there: the function that their docstrings refer to for arguments they share.
        writes: whether it writes files.
    """

    description: str
    functions: tuple[Callable[..., Any], ...]
    run: Callable[[Mapping[str, Any], OnCaseDone], dict[str, Any]]
    without: tuple[str, ...] = ()
    there: Callable[..., Any] | None = None
    writes: bool = False

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments; whether bundles may hold code is the server's choice, not the caller's."""
        return arguments_schema(self.functions, (*self.without, "safe"), self.there)

    @property
    def opens_bundles(self) -> bool:
        """Whether its function takes ``safe``."""
        return any("safe" in function.__annotations__ for function in self.functions)


class _Run:
    """Collect the records of a run's cases."""

    def __init__(self, on_case: OnCaseDone) -> None:
        self.cases: list[dict[str, Any]] = []
        self._on_case, self._total = on_case, 0

    def begin(self, plan: Plan) -> None:
        """Note how many cases there will be."""
        self._total = len(plan.cases)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a case that has ended, and report it."""
        case = {key: record[key] for key in _OF_CASE if record.get(key)}
        if record.get("stats"):
            case["volumes_ml"] = {row["name"]: row["volume_ml"] for row in record["stats"]}
        self.cases.append(case)
        self._on_case(len(self.cases), self._total, f"{record['status']}: {record['name']}")

    def answer(self, summary: Summary, output: str | Path) -> dict[str, Any]:
        """Return the run's summary, its cases and the path of its report."""
        return {**asdict(summary), "cases": self.cases, "report": str(Path(output).absolute() / "report.html")}


def _predict(arguments: Mapping[str, Any], on_case: OnCaseDone) -> dict[str, Any]:
    run = _Run(on_case)
    return run.answer(predict_folder(**arguments, on_plan=run.begin, on_case=run.add), arguments["output"])


def _embed(arguments: Mapping[str, Any], on_case: OnCaseDone) -> dict[str, Any]:
    run = _Run(on_case)
    of_folder = {name: value for name, value in arguments.items() if name in embed_folder.__annotations__}
    embedder = Embedder(**{name: value for name, value in arguments.items() if name not in of_folder})
    summary = embed_folder(embedder=embedder, **of_folder, on_plan=run.begin, on_case=run.add)
    return run.answer(summary, arguments["output"]) | {"features": str(Path(arguments["output"], "features.csv"))}


def _check(arguments: Mapping[str, Any], on_case: OnCaseDone) -> dict[str, Any]:
    return {"verdicts": check_files(**arguments)}


def _info(arguments: Mapping[str, Any], on_case: OnCaseDone) -> dict[str, Any]:
    return dict(describe_bundle(**arguments))


def _bundles(arguments: Mapping[str, Any], on_case: OnCaseDone) -> dict[str, Any]:
    return {"bundles": list_bundles()}


_NOT_OF_CALLERS = ("on_plan", "on_case", "on_window", "shard", "noted")
SERVED_TOOLS: dict[str, ServedTool] = {
    "predict": ServedTool(
        "Run a MONAI bundle over 3D medical images (NIfTI, DICOM series, MGH, NRRD, MetaImage): labels on each file's "
        "own grid, or a classifier's probabilities, tables of volumes, and a report. Images that the bundle was not "
        "made for are refused. For research, not for clinical use. See the tools bundles and info for what there is.",
        (predict_folder,), _predict, _NOT_OF_CALLERS, writes=True,
    ),
    "check": ServedTool(
        "Read files to their end and say of each whether it can be used, and what is odd about it; with a bundle, "
        "also whether it is like what the bundle was trained on. Writes nothing.",
        (check_files,), _check,
    ),
    "info": ServedTool("Say what a bundle is for and what it needs.", (describe_bundle,), _info),
    "embed": ServedTool(
        "Turn 3D medical images into vectors of features, by a published model or weights of your own: features.csv, "
        "features.npz and a report.",
        (embed_folder, Embedder), _embed, (*_NOT_OF_CALLERS, "embedder"), predict_folder, writes=True,
    ),
    "bundles": ServedTool("List the bundles that are installed: task, weights, licence, scores.", (), _bundles),
}  # fmt: skip

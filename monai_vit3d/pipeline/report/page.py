"""Write report.html: the result of every case of a run, with pictures, for a person to look through."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from monai_vit3d.data.files import remove_parts, write_text_atomic
from monai_vit3d.data.printable import printable
from monai_vit3d.visualize.colours import label_colour

PER_PAGE = 50  # results; with more, and their pictures inside, a page would be too large for a browser
_FILTERED = 6  # results from which on a page has a filter
_NAMES = 50  # files passed over for one reason that are shown; run.json has all
_ROWS = 12  # labels of a case shown at once; the others unfold
_STATES = ("done", "failed", "skipped", "pending")
# results that the filter tells apart, the first first on the page: class of CSS, key of a case, name
_KINDS = (
    ("suspicious", "suspicious", "suspicious"),
    ("unlike", "outliers", "unlike the others"),
    ("warned", "warnings", "with warnings"),
)

Record = Mapping[str, Any]


def write_report(records: Iterable[Record], run: Record, output: str | Path) -> None:
    """Write ``report.html``: one file; failures, suspicious cases, outliers, warnings, then the others.

    Its pictures are inside the page. Results after the first fifty are on ``report-2.html`` and further pages, whose
    pictures are read from the folder beside them. What comes from file names and headers is shown as text; a
    Content-Security-Policy forbids anything from the network, and all scripts but the filter's, by its hash.

    Args:
        records: ``files`` of run.json; of each, any of "name", "input", "status", "error", "warnings", "suspicious",
            "outliers" (sentences), "seconds", "picture" (relative to ``output``), "stats" (rows of ``LabelSummary``),
            "prediction" (class to probability).
        run: what holds for the whole run, any of "bundle", "versions", "weights_sha256", "device", "started",
            "seconds", "shard", "warnings" (sentences), "passed_over" (of each reason "reason", "count", "files").
        output: OUT; the page goes to its top.
    """
    facts = [("Weights", _weights(run)), *run_facts(run)]
    write_run_page("page.html.j2", records, run, output, title=_title(run), facts=facts, rows=_ROWS)


def write_run_page(template: str, records: Iterable[Record], run: Record, output: str | Path, **values: Any) -> None:
    """Write ``report.html``, and further pages, by a template: page.html.j2, or one that extends it.

    Pages of an earlier report that had more are removed.

    Args:
        template: its file, beside this one.
        records: as for :func:`write_report`; cases with warnings come before others that are no worse.
        run: see there.
        output: OUT.
        values: what the template needs besides, by name: ``title`` and ``facts``, pairs of name and value.
    """
    output = Path(output)
    cases = [_case(record, i) for i, record in enumerate(records)]
    results = sorted((case for case in cases if case["result"]), key=_rank)
    for i, case in enumerate(results):
        case["src"] = picture_source(case["picture"], output, embedded=i < PER_PAGE)
    once = {  # on the first page
        "warnings": [str(one) for one in run.get("warnings") or ()],
        "passed_over": [_passed_over(group) for group in run.get("passed_over") or ()],
        "failures": [case for case in cases if case["status"] == "failed"],
        "others": [case for case in cases if not case["result"] and case["status"] != "failed"],
    }
    names = _page_names(len(results))
    remove_parts(output / name for name in names)
    for i, name in enumerate(names):
        shown = results[i * PER_PAGE : (i + 1) * PER_PAGE]
        page = render_page(
            _read(template),
            counts=[*_counts(cases), *_passed_over_count(run)],
            shown=shown,
            kinds=[(kind, text) for kind, _, text in _KINDS if any(kind in case["kinds"] for case in shown)],
            **_script(shown),
            pages=names,
            page=name,
            results=len(results),
            first=i * PER_PAGE + 1,
            **(once if i == 0 else dict.fromkeys(once, ())),
            **{**values, "facts": [(name, str(value)) for name, value in values["facts"] if value]},
        )
        write_text_atomic(page, output / name)
    number = len(names) + 1
    while (old := output / _page_name(number)).is_file():
        old.unlink()
        number += 1


def _script(shown: Sequence[Any]) -> dict[str, Any]:
    """Return the filter's script, if there is much to filter, and the hash by which the page's policy knows it."""
    from markupsafe import Markup

    script = _read("filter.js") if len(shown) >= _FILTERED else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_hash": f"sha256-{digest}"}


def _page_names(results: int) -> list[str]:
    return [_page_name(number) for number in range(1, max(1, math.ceil(results / PER_PAGE)) + 1)]


def _page_name(number: int) -> str:
    return "report.html" if number == 1 else f"report-{number}.html"


def render_page(template: str, **values: Any) -> str:
    """Fill in a page's template, whose ``style`` is that of all pages; texts are escaped.

    Args:
        template: text in Jinja's language, with the filters ``figure`` and ``duration``.
        values: by their names in it.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_read),  # of the template that another extends
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.filters.update(figure=_figure, duration=_duration)
    return environment.from_string(template).render(style=Markup(_read("style.css")), **values)


def _read(name: str) -> str:
    """Return the text of a file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _finalized(value: Any) -> Any:
    """Show a text on the page: what cannot be printed, or turns the direction of writing, as escapes."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _case(record: Record, i: int) -> dict[str, Any]:
    """Convert a record to what the template takes, with every key."""
    status = str(record.get("status") or ("failed" if record.get("error") else "done"))
    source = record.get("input") or ""
    source = source if isinstance(source, str) else ", ".join(str(one) for one in source)
    stats, prediction = record.get("stats") or [], record.get("prediction") or {}
    has_result = bool(stats or prediction or record.get("picture") or record.get("windows"))
    result = status == "done" or (status == "skipped" and has_result)
    found = {
        "name": str(record.get("name") or source or f"case {i + 1}"),
        "input": source,
        "status": status,
        "result": result,
        "error": str(record.get("error") or ("no reason was recorded" if status == "failed" else "")),
        "warnings": [str(one) for one in record.get("warnings") or ()],
        "suspicious": bool(record.get("suspicious")),
        "outliers": [str(one) for one in record.get("outliers") or ()],
        "seconds": record.get("seconds"),
        "picture": record.get("picture"),
        "stats": [_stat(row) for row in stats],
        "bars": _bars(prediction),
        "windows": record.get("windows"),
    }
    return {**found, "kinds": [kind for kind, key, _ in _KINDS if found[key]]}


def _rank(case: Mapping[str, Any]) -> tuple[bool, ...]:
    """Sort suspicious cases first, then outliers of the run, then cases with warnings."""
    return tuple(kind not in case["kinds"] for kind, *_ in _KINDS)


def _stat(row: Record) -> dict[str, Any]:
    label = row.get("label")
    name = str(row.get("name") or ("" if label is None else f"label {label}"))
    colour = "" if label is None else "rgb({}, {}, {})".format(*label_colour(int(label)))
    return {"name": name, "colour": colour, **{key: row.get(key) for key in ("voxels", "volume_ml", "mean")}}


def _bars(prediction: Mapping[str, Any]) -> list[tuple[str, Any, float | None]]:
    """Name, value and width in percent of each class, the most probable first; a value outside 0 to 1 has no bar."""
    ranked = sorted(prediction.items(), key=lambda pair: -pair[1] if _is_number(pair[1]) else math.inf)
    inside = all(_is_number(value) and 0 <= value <= 1 for _, value in ranked)
    return [(str(name), value, round(100 * value, 1) if inside else None) for name, value in ranked]


def picture_source(picture: Any, output: Path, embedded: bool) -> str:
    """Return a picture's ``src``; empty if there is none, or it is no PNG below ``output``.

    Args:
        picture: its path below ``output``.
        output: OUT.
        embedded: whether it is inside the page.
    """
    if not picture:
        return ""
    path = output / str(picture)
    if not path.resolve().is_relative_to(output.resolve()) or not path.is_file():
        return ""
    if not embedded:
        return quote(path.relative_to(output).as_posix(), errors="surrogateescape")
    content = path.read_bytes()
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if is_png else ""


def _title(run: Record) -> str:
    return PurePath(str(run.get("bundle") or "")).name or "unnamed bundle"


def _weights(run: Record) -> str:
    files = run.get("weights")
    listed = [file for file in files if isinstance(file, Mapping)] if isinstance(files, list) else []
    names = [PurePath(str(file.get("file") or "")).name for file in listed]
    sha256 = str(run.get("weights_sha256") or "")
    return ", ".join([*names, *([f"sha256 {sha256[:12]}…"] if sha256 else [])])


def run_facts(run: Record) -> list[tuple[str, Any]]:
    """Return names and values of what every run has: device, engine, times, versions."""
    return [
        ("Device", run.get("device")),
        ("Network run by", _engine(run)),
        ("Started", run.get("started")),
        ("Time", _duration(run.get("seconds")) if run.get("seconds") is not None else ""),
        ("Shard", _shard(run.get("shard") or run.get("shards"))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())),
    ]


def _engine(run: Record) -> str:
    engine = run.get("backend")
    return f"{'PyTorch' if engine == 'torch' else engine} ({run.get('backend_reason')})" if engine else ""


def _shard(shard: Any) -> str:
    if isinstance(shard, Sequence) and not isinstance(shard, str):
        if len(shard) == 2 and isinstance(shard[0], int):
            return f"{shard[0]} of {shard[1]}" if shard[1] > 1 else ""
        return f"{len(shard)} merged"
    return str(shard or "")


def _counts(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return a class of CSS and a text for each part of the summary; done, failed and skipped are always there."""
    states = Counter(case["status"] for case in cases)
    warned = sum(bool(case["warnings"]) for case in cases)
    usual = [(state, f"{states[state]} {state}") for state in _STATES if states[state] or state != "pending"]
    odd = [("pending", f"{n} {state}") for state, n in states.items() if state not in _STATES]
    suspicious = sum(case["suspicious"] and case["result"] for case in cases)
    doubts = [("warned", f"{suspicious} suspicious")] if suspicious else []
    outliers = sum(bool(case["outliers"]) and case["result"] for case in cases)
    doubts += [("warned", f"{outliers} unlike the others")] if outliers else []
    return [*usual, *odd, *doubts, ("warned", f"{warned} with warnings")]


def _passed_over_count(run: Record) -> list[tuple[str, str]]:
    count = sum(group["count"] for group in run.get("passed_over") or ())
    return [("over", f"{count} passed over")] if count else []


def _passed_over(group: Record) -> dict[str, Any]:
    """Return a reason with its number of files, the first of them, and how many more there are."""
    files = [str(path) for path in group["files"][:_NAMES]]
    return {"reason": group["reason"], "count": group["count"], "files": files, "more": group["count"] - len(files)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _figure(value: Any) -> str:
    """Format a number with four significant digits; a dash for none."""
    if not _is_number(value):
        return "–"  # noqa: RUF001
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    places = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.3e}" if places > 7 else f"{value:,.{max(0, places)}f}"


def _duration(seconds: Any) -> str:
    if not _is_number(seconds):
        return "–"  # noqa: RUF001
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

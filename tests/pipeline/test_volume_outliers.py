"""Volumes that are unlike the other cases' of a run."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from monai_vit3d.pipeline.folder import publish
from monai_vit3d.pipeline.volume_outliers import note_volume_outliers
from tests.pipeline.tiny import predict, records


def cases(*volumes, name="LEFT"):
    return [{"name": str(i), "stats": [{"label": 1, "name": name, "volume_ml": ml}]} for i, ml in enumerate(volumes)]


def outliers(found):
    note_volume_outliers(found)
    return [record.get("outliers") for record in found]


@given(st.lists(st.floats(0.001, 1e4), min_size=5, max_size=30))
def test_scores_are_scipys(volumes):
    mad = median_abs_deviation(volumes)
    apart = np.abs(np.array(volumes) - np.median(volumes))
    far = 0.6745 * apart > 3.5 * mad
    large = apart / np.median(volumes)
    sure = ~np.isclose(0.6745 * apart, 3.5 * mad) & ~np.isclose(large, 0.1)
    far &= large > 0.1
    flagged = np.array([bool(texts) for texts in outliers(cases(*volumes))])
    assert not flagged.any() if mad == 0 else (flagged == far)[sure].all()


@pytest.mark.parametrize(("count", "share"), [(5, 0.2), (20, 0.1)])
def test_how_often_chance_alone_gives_one(count, share):
    """As docs/predict.md says; of normal volumes with a standard deviation of 15 %."""
    rng = np.random.default_rng(0)
    runs = [any(outliers(cases(*rng.normal(100, 15, count)))) for _ in range(1000)]
    assert np.mean(runs) == pytest.approx(share, abs=0.04)


def test_the_sentence():
    assert outliers(cases(3.0, 3.4, 3.1, 3.9, 3.6, 9.1, 3.4)) == [
        *[[]] * 5,
        ["volume of LEFT: 9.1 ml, 12.8 robust SD above this run's median 3.4 ml"],
        [],
    ]
    assert outliers(cases(1201.4, 1250, 1231, 1190.2, 100, 1213))[4] == [
        "volume of LEFT: 100 ml, 36.6 robust SD below this run's median 1207 ml"
    ]


@pytest.mark.parametrize(
    "volumes",
    [(1, 1.1, 1.2, 90), (2, 2, 2, 2, 2, 9), (3.001, 3.002, 3.0, 3.001, 3.003, 3.1)],
    ids=["four cases", "no spread", "scans of one subject"],
)
def test_too_little_to_compare_with(volumes):
    assert outliers(cases(*volumes)) == [[] for _ in volumes]


def test_labels_are_compared_with_themselves_and_failures_are_left_alone():
    found = [*cases(1, 1.1, 1.2, 1.3, 1.4), *cases(50.0, name="RIGHT"), {"name": "x", "status": "failed"}]
    assert outliers(found) == [*[[]] * 6, None]


def test_what_an_earlier_run_wrote_is_written_anew():
    found = cases(1, 1.1, 1.2, 1.3, 1.4)
    found[2]["outliers"] = ["of other cases"]
    assert outliers(found) == [[]] * 5


def test_a_run_says_so_in_its_record_and_first_in_its_report(tmp_path, cohort, clean_run, tiny_bundle):
    """The volume of a label is twice that of the others, in the record of a finished run."""
    out = tmp_path / "out"
    shutil.copytree(clean_run, out)
    content = json.loads((out / "run.json").read_text())
    for i, record in enumerate(content["files"]):
        record["suspicious"] = []
        for row in record["stats"]:
            row["volume_ml"] = (5 + i / 10) * (2 if record["name"] == "case03" else 1)
    (out / "run.json").write_text(json.dumps(content))
    publish(out)
    texts = {name: record["outliers"] for name, record in records(out).items()}
    assert [name for name, lines in texts.items() if lines] == ["case03"]
    assert [line.split(":")[0] for line in texts["case03"]] == ["volume of grey", "volume of white"]
    page = (out / "report.html").read_text()
    assert page.index("<bdi>case03</bdi>") < page.index("<bdi>case00</bdi>")
    assert page.count("Unlike this run&#39;s others") + page.count("Unlike this run's others") == 1
    assert "1 unlike the others" in page
    assert predict(cohort, to=out, bundle=tiny_bundle, options=["--resume"]) == 0  # a record of these is still one

"""The page of an embedding run: facts of the model, the map, windows and pictures of the cases."""

import pytest
from PIL import Image

from monai_vit3d.pipeline.report.embeddings import describe_recipe, write_embedding_report
from monai_vit3d.visualize.overlay import write_png
from tests.pipeline.report.test_page import HOSTILE, Page, done


@pytest.mark.parametrize("kinds", [["embedding"], ["embedding", "tokens", "pca"]])
def test_a_run(tmp_path, kinds):
    records = [
        done(tmp_path, "a", windows=4),
        done(tmp_path, "b", windows=1, warnings=["odd spacing"]),
        {"name": "c", "input": "in/c.nii", "status": "failed", "error": "c.nii: 4D image"},
        {"name": HOSTILE, "status": "skipped", "windows": 2},
        {"name": "e", "status": "pending"},
    ]
    write_png(Image.new("RGB", (30, 20)), tmp_path / "features.png")
    run = {
        "model_name": "colipri",
        "model": {"title": "COLIPRI"},
        "license": "mit",
        "feature": "class_token",
        "kinds": kinds,
        "recipe": {"orientation": None, "steps": [{"z_score": {"nonzero": False}}], "stated": {"orientation": "RAS"}},
    }
    write_embedding_report(records, run, tmp_path, "features.png")
    page = Page(tmp_path / "report.html")
    assert not page.open
    assert page.text("h1") == ["colipri"]
    assert page.text("dd") == ["COLIPRI", "mit", "class token", "RAS; z_score nonzero False"]
    assert page.text("h2") == ["Failed", "Map", "Results", "Not run"]
    assert page.text("h3") == ["b", "a", HOSTILE]  # warnings first
    assert {"4 windows", "1 window", "2 windows"} <= set(page.text("p", "soft"))
    assert len([e for e in page.all("img") if e[1]["src"].startswith("data:image/png")]) == 3
    (legend,) = (text for text in page.text("p", "soft") if "patient's right" in text)
    assert ("principal components" in legend) == (len(kinds) > 1)
    assert "labels" not in " ".join(page.text("main"))
    write_embedding_report(records, run, tmp_path)
    assert Page(tmp_path / "report.html").text("h2") == ["Failed", "Results", "Not run"]


def test_a_recipe_in_a_line():
    steps = [{"resample": {"spacing_mm": [1, 1, 2], "mode": 3}}, {"rescale": {"from": [-1000, 1000]}}]
    assert describe_recipe({"orientation": "SAR", "steps": steps}) == (
        "SAR; resample spacing_mm 1, 1, 2, mode 3; rescale from -1000, 1000"
    )
    assert describe_recipe({}) == ""

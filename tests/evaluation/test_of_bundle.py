"""A bundle that was trained: each fold predicts what it has not seen, and the result is scored and finished."""

import json

import pytest

from monai_vit3d.data import UsageError, WeightsError
from monai_vit3d.data.files import file_sha256
from monai_vit3d.evaluation import evaluate_bundle, finish_training
from monai_vit3d.training import train_bundle
from tests.helpers import run_warm
from tests.training.tiny_bundle import write_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Two folds, trained for an epoch."""
    folder = write_tiny(tmp_path_factory.mktemp("trained"), cases=4, epochs=1)
    train_bundle(folder, fold="all", finish=False)
    return folder


def metadata(bundle):
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def test_each_case_is_predicted_by_the_fold_that_has_not_seen_it(bundle):
    evaluation = evaluate_bundle(bundle)
    assert evaluation.page == bundle / "evaluation" / "report.html"
    split = json.loads((bundle / "configs" / "split.json").read_text())["training"]
    for fold in (0, 1):
        run = json.loads((bundle / "predictions" / f"fold_{fold}" / "run.json").read_text())
        assert run["weights_sha256"] == file_sha256(bundle / "models" / f"fold_{fold}.pt")
        assert {one["name"] for one in run["files"]} == {case["name"] for case in split if case["fold"] == fold}
    assert sorted(one.case.name for one in evaluation.scored) == sorted(case["name"] for case in split)
    assert [row.name for row in evaluation.classes] == ["all classes", "liver", "lesion"]


def test_one_fold_alone_and_what_is_not_trained(bundle):
    records = []
    evaluation = evaluate_bundle(bundle, folds=[1], output=bundle / "one", on_record=records.append)
    assert len(evaluation.scored) == 2
    assert {record["status"] for record in records} == {"skipped"}, "predicted again what was there"
    with pytest.raises(WeightsError, match=r"no weights of fold 4 .*vit3d train"):
        evaluate_bundle(bundle, folds=[4])
    with pytest.raises(UsageError, match="section=training; expected one of validation, testing"):
        evaluate_bundle(bundle, section="training")


def test_monais_own_run_of_evaluate_yaml_gives_the_same_dice(bundle, tmp_path):
    """Of a fold's validation cases, predicted by that fold alone."""
    options = ["--section", "validation", "--fold", "1", "--output_dir", tmp_path]
    configs = "['configs/inference.yaml','configs/evaluate.yaml']"
    code, output = run_warm("-m", "monai.bundle", "run", "--config_file", configs, *options, folder=bundle)
    assert code == 0, output
    (line,) = [line for line in (tmp_path / "metrics.csv").read_text().splitlines() if line.startswith("val_dice")]
    evaluation = evaluate_bundle(bundle, folds=[1], output=tmp_path / "ours")
    assert float(line.split(",")[1]) == pytest.approx(evaluation.classes[0].means["dice"].mean, abs=1e-5)


def test_finishing_writes_what_was_measured_and_chosen(bundle):
    before = metadata(bundle)
    chosen = finish_training(bundle)
    after = metadata(bundle)
    assert after["plan"]["keep_largest"] == [value for value, row in chosen.items() if row.kept]
    assert after["trained_on"]["cases"] == 4
    assert after["trained_on"]["labels"]["1"]["volume_ml"] == [0.72, 0.72]
    del after["trained_on"], before["plan"]["keep_largest"]
    records, kept = [], after["plan"].pop("keep_largest")
    assert {**after, "trained_on": 0} == {**before, "trained_on": 0}, "something else was changed"
    evaluate_bundle(bundle, on_record=records.append)
    assert {record["status"] for record in records} == {"done" if kept else "skipped"}


def test_a_bundle_without_a_finished_training(tmp_path):
    with pytest.raises(WeightsError, match=r"no training is finished.* vit3d train"):
        evaluate_bundle(write_tiny(tmp_path))


def test_a_bundle_of_another_task_is_left_as_it_is(tmp_path):
    bundle = write_tiny(tmp_path)
    content = metadata(bundle)
    content["plan"]["task"] = "regression"
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    assert finish_training(bundle) == {}
    assert file.read_bytes() == before
    with pytest.raises(WeightsError, match="no training is finished"):
        evaluate_bundle(bundle)

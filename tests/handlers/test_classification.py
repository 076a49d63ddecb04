"""Scores, predictions and calibration in MONAI's own evaluator, in one process and in two."""

import csv
import json
import os
import socket

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, DistributedSampler, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MetricsSaver
from monai.transforms import Lambdad
from sklearn.metrics import roc_auc_score
from torch import nn

from monai_vit3d.data import ScoreError, WeightsError
from monai_vit3d.handlers import ClassificationMetric, PredictionsCSV, calibrate, save_atomic
from tests.helpers import run_processes

NAMES = ["left, upper", "right", 'the "third"']
CASES = 7


class TinyClassifier(nn.Module):
    """A volume of 8 voxels to 3 logits, far too sure of them."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.output = nn.Linear(8, outputs)
        with torch.no_grad():
            self.output.weight.mul_(6)

    def forward(self, x):
        return self.output(x.flatten(1))

    def scale_logits(self, factor):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(factor)


def make_cases(root, count=CASES):
    """Volumes with file names in sub-folders, and one-hot labels; every class occurs."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 2, 2, 2, generator=generator)
    return [
        {
            "image": MetaTensor(image, meta={"filename_or_obj": str(root / f"s{i % 2}" / f"case_{i}.nii.gz")}),
            "label": torch.eye(3)[i % 3],
        }
        for i, image in enumerate(images)
    ]


def make_evaluator(cases, handlers=(), network=None, post=None, **options):
    sampler = options.pop("sampler", None)
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(cases), batch_size=2, sampler=sampler),
        TinyClassifier() if network is None else network,
        postprocessing=Lambdad("pred", (lambda x: x.softmax(-1)) if post is None else post),
        val_handlers=list(handlers),
        **options,
    )


def reference(cases, network=None):
    """Probabilities of all cases ``(N, 3)`` and class numbers, without MONAI."""
    network = TinyClassifier() if network is None else network
    with torch.no_grad():
        logits = network(torch.stack([case["image"].as_tensor() for case in cases])).numpy().astype(float)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), np.array([case["label"].argmax().item() for case in cases])


def one_vs_rest(probabilities, labels):
    return np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)])


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_metrics_in_a_monai_evaluator(tmp_path):
    cases = make_cases(tmp_path)
    parser = ConfigParser({"auc": {"_target_": "monai_vit3d.handlers.ClassificationMetric", "score": "auc"}})
    evaluator = make_evaluator(
        cases,
        [MetricsSaver(str(tmp_path), metrics=["*"], metric_details=["*"], batch_transform=lambda b: [{}] * len(b))],
        key_val_metric={"val_auc": parser.get_parsed_content("auc")},
        additional_metrics={"accuracy": ClassificationMetric("accuracy", "multi-class")},
    )
    probabilities, labels = reference(cases)
    expected = {"val_auc": one_vs_rest(probabilities, labels), "accuracy": np.mean(probabilities.argmax(1) == labels)}
    for _ in range(2):  # the second run starts from nothing
        evaluator.run()
        assert evaluator.state.metrics == pytest.approx(expected, abs=1e-12)
    assert evaluator.state.key_metric_name == "val_auc"
    rows = {name: float(value) for name, value in read_csv(tmp_path / "metrics.csv")}
    assert rows == pytest.approx(expected, abs=1e-12)


def test_predictions_csv(tmp_path):
    cases = make_cases(tmp_path / "data")
    cases[1]["image"].meta["filename_or_obj"] = cases[0]["image"].meta["filename_or_obj"]  # both rows are kept
    cases[2]["image"].meta["filename_or_obj"] = "/elsewhere/case.nii.gz"
    path = tmp_path / "new" / "predictions.csv"
    handler = PredictionsCSV(path, NAMES, with_label=True, data_root_dir=tmp_path / "data" / ".." / "data")
    evaluator = make_evaluator(cases, [handler])
    evaluator.run()
    evaluator.run()  # again: the same rows, not twice as many
    header, *rows = read_csv(path)
    assert header == ["filename", *(f"probability_{name}" for name in NAMES), "prediction", "label"]
    probabilities, labels = reference(cases)
    assert [row[0] for row in rows] == [
        "s0/case_0.nii.gz",
        "s0/case_0.nii.gz",
        "/elsewhere/case.nii.gz",
        *(f"s{i % 2}/case_{i}.nii.gz" for i in range(3, CASES)),
    ]
    np.testing.assert_allclose([[float(p) for p in row[1:4]] for row in rows], probabilities, rtol=1e-5)
    assert [row[4] for row in rows] == [NAMES[k] for k in probabilities.argmax(1)]
    assert [row[5] for row in rows] == [NAMES[k] for k in labels]
    assert os.listdir(path.parent) == ["predictions.csv"]
    assert b"\r" not in path.read_bytes()


def write_items(handler, items, batch=({},)):
    """What a handler writes for items as they are after postprocessing."""
    engine = Engine(lambda engine, batch: items)
    handler.attach(engine)
    engine.run([list(batch)])
    return read_csv(handler.path)


@pytest.mark.parametrize(
    ("task", "names", "pred", "label", "expected"),
    [
        ("multi-label, binary-class", "abc", [0.9, 0.5, 0.51], [0, 1, 1], "x,0.9,0.5,0.51,a|c,b|c"),
        ("multi-label", "abc", [0.1, 0.2, 1.23456789e-8], [0, 0, 0], "x,0.1,0.2,1.23457e-08,,"),
        ("ordinal-regression", "abc", [0.1, 0.2, 0.7], [1, 0], "x,0.1,0.2,0.7,c,b"),
        ("binary-class", "ab", [0.5, 0.5], [0, 1], "x,0.5,0.5,a,b"),
        ("regression", ["age"], [61.25], [60.0], "x,61.25,60"),
        ("regression", ["age", "volume_ml"], [61.25, 1234567.0], [60, 2], "x,61.25,1.23457e+06,60,2"),
    ],
)
def test_rows_of_every_task(task, names, pred, label, expected, tmp_path):
    item = {"pred": torch.tensor(pred), "label": torch.tensor(label, dtype=torch.float32)}
    handler = PredictionsCSV(tmp_path / "p.csv", names, task, with_label=True)
    header, row = write_items(handler, [item], [{"name": "x"}])  # a tensor without metadata: the batch knows its name
    assert ",".join(row) == expected
    assert len(header) == len(row)
    answers = ["prediction", "label"]
    if task == "regression" and len(names) == 2:
        answers = ["prediction_age", "prediction_volume_ml", "label_age", "label_volume_ml"]
    assert header[-len(answers) :] == answers
    without = PredictionsCSV(tmp_path / "p.csv", names, task)
    kept = len(row) - len(answers) // 2
    assert write_items(without, [{"pred": item["pred"], "name": "x"}]) == [header[:kept], row[:kept]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pred": torch.tensor([0.5, float("nan"), 0.5])}, "case_x: NaN or infinite probabilities"),
        ({"pred": torch.tensor([0.5, 0.5])}, "case_x: 2 probabilities for 3 class names"),
        ({"label": torch.ones(2)}, r"case_x: a label of shape \(2,\); expected a target vector of 3"),
        ({"label": None}, "case_x: no label"),
        ({"name": None}, "case 0 has no file name"),
    ],
)
def test_bad_case_is_named_and_nothing_written(change, match, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("old\n")
    item = {"pred": torch.tensor([0.2, 0.3, 0.5]), "label": torch.eye(3)[0], "name": "case_x", **change}
    with pytest.raises(ScoreError, match=match):
        write_items(PredictionsCSV(path, NAMES, with_label=True), [item])
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_terminated_run_writes_nothing(tmp_path):
    evaluator = make_evaluator(make_cases(tmp_path), [PredictionsCSV(tmp_path / "p.csv", NAMES)])
    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), evaluator.terminate)
    evaluator.run()
    assert os.listdir(tmp_path) == []


def test_predictions_csv_refuses_its_options(tmp_path):
    for names in (["a", "a"], []):
        with pytest.raises(ValueError, match=r"class_names=.*each of them once"):
            PredictionsCSV(tmp_path, names)
    with pytest.raises(ValueError, match=r"'\|' joins"):
        PredictionsCSV(tmp_path, ["a|b", "c"], "multi-label")
    whole = make_evaluator(make_cases(tmp_path), [PredictionsCSV(tmp_path / "p", NAMES)], decollate=False)
    with pytest.raises(ScoreError, match="decollate=True"):
        whole.run()


def evaluate_part(rank, port, folder):
    """One of two processes: its share of the cases, the score and the file of all."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    cases = make_cases(folder / "data")
    sampler = DistributedSampler(Dataset(cases), even_divisible=False, shuffle=False)
    handler = PredictionsCSV(folder / "two.csv", NAMES, data_root_dir=folder / "data")
    metric = {"auc": ClassificationMetric("auc")}
    evaluator = make_evaluator(cases, [handler], sampler=sampler, key_val_metric=metric)
    evaluator.run()
    assert len(handler.rows) == (4 if rank == 0 else 3)
    (folder / f"auc_{rank}.json").write_text(json.dumps(evaluator.state.metrics["auc"]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(evaluate_part, port, tmp_path)
    cases = make_cases(tmp_path / "data")
    make_evaluator(cases, [PredictionsCSV(tmp_path / "one.csv", NAMES, data_root_dir=tmp_path / "data")]).run()
    expected = one_vs_rest(*reference(cases))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"auc_{rank}.json").read_text()) == pytest.approx(expected, abs=1e-12)
    one, two = read_csv(tmp_path / "one.csv"), read_csv(tmp_path / "two.csv")
    assert [row[0] for row in two] == [row[0] for row in one]  # in the same order
    for a, b in zip(one[1:], two[1:]):  # other batches may round otherwise
        np.testing.assert_allclose([float(p) for p in a[1:4]], [float(p) for p in b[1:4]], rtol=1e-5)
        assert a[4] == b[4]


def save_network(path, network):
    save_atomic(network.state_dict(), path)
    return path


def test_calibrate(tmp_path, caplog):
    source = save_network(tmp_path / "best.pt", TinyClassifier())
    cases, network = make_cases(tmp_path, count=60), TinyClassifier()
    with torch.no_grad():
        network.output.weight.zero_()  # the weights must come from the file
    target, report = tmp_path / "out" / "model.pt", tmp_path / "out" / "calibration.json"
    loader = DataLoader(Dataset(cases), batch_size=7)
    with caplog.at_level("INFO", "monai_vit3d"):
        found = calibrate(network.train(), loader, nn.CrossEntropyLoss(), "cpu", source, target, report=report)
    before, labels = reference(cases)
    calibrated = TinyClassifier()
    calibrated.load_state_dict(torch.load(target, weights_only=True))
    after, _ = reference(cases, calibrated)
    for probabilities, nll in ((before, found.nll_before), (after, found.nll_after)):
        assert nll == pytest.approx(-np.log(probabilities[np.arange(60), labels]).mean(), rel=1e-5)
    assert found.temperature > 2  # labels have nothing to do with the images
    assert found.nll_after < found.nll_before
    assert found.ece_after < found.ece_before
    torch.testing.assert_close(calibrated.output.weight, TinyClassifier().output.weight / found.temperature)
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    keys = ["temperature", "ece_before", "ece_after", "nll_before", "nll_after"]
    assert json.loads(report.read_text()) == {**{key: getattr(found, key) for key in keys}, "cases": 60}
    assert not network.training
    assert sum("calibrated" in line for line in caplog.text.splitlines()) == 1
    # what is calibrated stays as it is
    again = calibrate(network, loader, nn.CrossEntropyLoss(), "cpu", target, target)
    assert again.temperature == pytest.approx(1, abs=1e-3)


def test_calibrate_levels_and_values(tmp_path):
    cases = make_cases(tmp_path, count=30)
    for i, case in enumerate(cases):
        case["label"] = (torch.arange(2) < i % 3).float()
    network = TinyClassifier(2)
    with torch.no_grad():  # cumulative logits: the second is below the first
        network.output.weight[1] = network.output.weight[0]
        network.output.bias[:] = torch.tensor([3.0, -3.0])
    source = save_network(tmp_path / "best.pt", network)
    loader = DataLoader(Dataset(cases), batch_size=8)
    found = calibrate(network, loader, nn.BCEWithLogitsLoss(), "cpu", source, tmp_path / "a.pt", "ordinal-regression")
    assert found.temperature > 1.5
    assert found.nll_after < found.nll_before
    values = calibrate(
        network, loader, nn.MSELoss(), "cpu", source, tmp_path / "b.pt", "regression", tmp_path / "r.json"
    )
    assert (values.temperature, values.ece_before, values.cases) == (1, None, 0)
    assert json.loads((tmp_path / "r.json").read_text())["nll_after"] is None
    for key, value in torch.load(source, weights_only=True).items():
        assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=True)[key], value)


def test_calibrate_writes_nothing_when_it_fails(tmp_path):
    source, target = save_network(tmp_path / "best.pt", TinyClassifier()), tmp_path / "model.pt"
    cases, loss = make_cases(tmp_path), nn.CrossEntropyLoss()
    cases[3]["image"][:] = float("nan")
    with pytest.raises(ScoreError, match="1 of 7 cases are NaN or infinite, case 3 first"):
        calibrate(TinyClassifier(), DataLoader(Dataset(cases), batch_size=2), loss, "cpu", source, target)
    with pytest.raises(ScoreError, match="0 logits"):
        calibrate(TinyClassifier(), [], loss, "cpu", source, target)
    with pytest.raises(WeightsError, match="no such file"):
        calibrate(TinyClassifier(), [], loss, "cpu", tmp_path / "none.pt", target)
    with pytest.raises(TypeError, match="Linear has no scale_logits"):
        calibrate(nn.Linear(8, 3), [], loss, "cpu", source, target)
    assert os.listdir(tmp_path) == ["best.pt"]

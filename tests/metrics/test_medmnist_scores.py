"""predictions.csv as MedMNIST's own Evaluator takes it."""

import numpy as np
import pytest

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.metrics import accuracy, auc, write_medmnist_scores

medmnist = pytest.importorskip("medmnist")


@pytest.mark.parametrize(("dataset", "classes"), [("nodulemnist3d", 2), ("organmnist3d", 11)])
def test_medmnists_evaluator_takes_it(tmp_path, monkeypatch, dataset, classes):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(classes), 40).round(6)
    labels = np.arange(40) % classes
    rng.shuffle(labels)
    np.savez(tmp_path / f"{dataset}.npz", test_labels=labels[:, None])
    names = [f"probability_{c}" for c in range(classes)]
    lines = [f"case{i:02d}.nii.gz,{','.join(map(str, row))},x" for i, row in enumerate(scores)]
    (tmp_path / "predictions.csv").write_text("\n".join([",".join(["filename", *names, "prediction"]), *lines]))
    path = write_medmnist_scores(tmp_path / "predictions.csv", tmp_path, dataset)
    monkeypatch.setattr(medmnist.Evaluator.__init__, "__defaults__", (None, str(tmp_path)))
    found = medmnist.Evaluator.parse_and_evaluate(str(path))
    if classes > 2:  # of two classes MedMNIST asks whether the last one is above a half
        assert pytest.approx(accuracy(scores, labels, "multi-class")) == found.ACC
        assert pytest.approx(auc(scores, labels, "multi-class")) == found.AUC
    else:
        assert pytest.approx(((scores[:, 1] > 0.5) == labels).mean()) == found.ACC


@pytest.mark.parametrize("text", ["", "filename,prediction\na,x\n", "filename,probability_a,prediction\n"])
def test_other_tables_are_refused(tmp_path, text):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ScoreError, match=r"predictions\.csv: no columns probability_NAME"):
        write_medmnist_scores(tmp_path / "predictions.csv", tmp_path, "organmnist3d")
    with pytest.raises(ScoreError, match="split='all'"):
        write_medmnist_scores(tmp_path / "predictions.csv", tmp_path, "organmnist3d", "all")

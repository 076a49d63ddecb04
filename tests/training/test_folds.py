"""Which folds a training is for, and which shard of a job array ends them."""

import os

from monai_vit3d.training.folds import chosen_folds, last_finished, model_file


def test_the_shard_whose_fold_ends_last_finishes_the_training(tmp_path):
    (tmp_path / "models").mkdir()
    for time, fold in enumerate((1, 0, 2)):
        assert last_finished(tmp_path, [0, 1, 2]) is None
        model_file(tmp_path, fold).touch()
        os.utime(model_file(tmp_path, fold), ns=(time, time))
    assert last_finished(tmp_path, [0, 1, 2]) == 2
    assert [last_finished(tmp_path, [0, 1, 2]) in chosen_folds([0, 1, 2], "all", (i, 3)) for i in (1, 2, 3)] == [
        False, False, True,
    ]  # fmt: skip

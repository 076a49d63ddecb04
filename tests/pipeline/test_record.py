"""Records of several runs into one folder: which one counts."""

import json
import os

import pytest

from monai_vit3d.pipeline.record import load_records, merge_records


@pytest.mark.parametrize("times", [(1e9, 2e9), (2e9, 1e9)], ids=["older file", "newer file"])
@pytest.mark.parametrize("later", [2, 3])
def test_of_two_shards_the_one_that_started_later_counts_whatever_the_files_times_are(tmp_path, later, times):
    """Copying a folder changes the times of its files."""
    for shards, time in zip((2, 3), times):
        hour = 9 if shards == later else 8
        record = {"name": "a", "status": "done", "error": f"of {shards}"}
        content = {"started": f"2026-11-30T{hour:02d}:59:00+00:00", "ended": "", "files": [record]}
        path = tmp_path / f".run-1-of-{shards}.json"
        path.write_text(json.dumps(content | {"bundle": f"b{shards}"}))
        os.utime(path, (time, time))
    assert load_records(tmp_path)["a"]["error"] == f"of {later}"
    about, (record,) = merge_records(tmp_path)
    assert (about["bundle"], record["error"]) == (f"b{later}", f"of {later}")

"""What the tests share does what it says."""

import itertools

import pytest

from tests.helpers import pairwise, run_python, run_warm, side_by_side


def test_pairwise_rows_hold_every_pair_and_are_few():
    axes = range(5), "abcd", [True, False], [None, "x", 3]
    rows = pairwise(*axes)
    for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(first, second))
    assert len(rows) <= 24  # of 120
    assert len(set(rows)) == len(rows)


def test_side_by_side_rows_hold_every_value():
    assert side_by_side("abc", {1: None, 2: None}) == [("a", 1), ("b", 2), ("c", 1)]


@pytest.mark.slow
def test_a_warm_process_does_what_a_new_one_does(tmp_path):
    code = (
        "import os, sys; print(os.getcwd(), sys.argv, sys.path[0] in ('', os.getcwd()), os.environ['A']); sys.exit(3)"
    )
    fresh = run_python("-c", code, "b", cwd=tmp_path, env={"A": "c"})
    assert (
        run_warm("-c", code, "b", folder=tmp_path, env={"A": "c"})
        == fresh[:2]
        == (3, f"{tmp_path} ['-c', 'b'] True c\n")
    )


@pytest.mark.slow
def test_a_warm_process_that_raises_ends_as_python_ends(tmp_path):
    (tmp_path / "fails.py").write_text("import atexit\natexit.register(print, 'at exit')\nraise ValueError('why')\n")
    code, output = run_warm(tmp_path / "fails.py")
    assert code == 1
    assert output.endswith("ValueError: why\nat exit\n")


@pytest.mark.slow
def test_warm_processes_find_each_other():
    code = """
import torch.distributed as dist, torch
dist.init_process_group("gloo")
one = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(one)
print("sum", one.item())
dist.destroy_process_group()
"""
    exit_code, output = run_warm("-c", code, processes=2)
    assert exit_code == 0, output
    assert output.count("sum 3.0\n") == 2


@pytest.mark.slow
def test_a_process_that_fails_takes_the_others_along():
    code = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(5)\ntime.sleep(1000)"
    assert run_warm("-c", code, processes=2)[0] == 5

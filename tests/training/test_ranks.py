"""Several processes take the steps of one; ``python -m ranks`` compares all strategies so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks.runs import quiet_run
from ranks.start import start_group
from small_runs import checkpoint_data, log_records

from fewshot_blo.training.run import BEST

Group = tuple[Path, list[Any]]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """A folder, and what each of two processes has to say."""
    folder = tmp_path_factory.mktemp("group")
    return folder, start_group(folder, 2, "exchange", "a sample", "train", "fail")


def test_what_is_exchanged(group: Group) -> None:
    said = group[1][0]["exchange"]
    assert said["sum"] == [3, 3]
    assert said["any"] == [True, False, True]
    assert (said["first"], said["collected"], said["same"]) == ("of 0", [0, 1], [0, 0])
    assert said["refused"] == "ValueError: no"


def test_every_strategy_takes_the_steps_of_one_process(group: Group) -> None:
    errors = group[1][0]["a sample"]
    assert len(errors) > 12
    assert max(errors.values()) > 0, "the same order of sums: nothing is compared"
    assert {case: error for case, error in errors.items() if error > 1e-12} == {}


def close(ours: Any, theirs: Any) -> None:
    """Trees of plain data and tensors that are equal up to rounding in float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_run_is_that_of_one_process(group: Group, tmp_path: Path) -> None:
    folder, said = group
    assert said[0]["train"]["step"] == 6
    quiet_run(tmp_path)
    close(log_records(folder / "whole"), log_records(tmp_path))
    for name in (BEST, "last.pt"):
        ours, theirs = checkpoint_data(folder / "whole", name), checkpoint_data(tmp_path, name)
        for part in ("step", "outer", "buffers", "strategy", "best"):
            close(ours[part], theirs[part])


def test_processes_that_differ_are_refused(group: Group) -> None:
    refused = group[1][0]["train"]["refused"]
    assert "differ in their training tasks" in refused["seeds"]
    assert "differ in their strategies (Unroll(" in refused["strategies"]
    assert "differ in their folders" in refused["folders"]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_another_number_goes_on(group: Group, tmp_path: Path) -> None:
    folder, said = group
    assert (said[0]["train"]["stopped"], said[0]["train"]["interrupted"]) == (4, True)
    assert checkpoint_data(folder / "stopped")["step"] == 4
    quiet_run(folder / "stopped", resume=True)
    quiet_run(tmp_path)
    close(log_records(folder / "stopped"), log_records(tmp_path))


def test_a_process_that_ends_is_told(group: Group) -> None:
    assert "process 0 of 2 lost contact with another one" in group[1][0]["fail"]

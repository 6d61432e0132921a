"""Processes that torchrun started: how they meet, who reports an error, what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from fewshot_blo.commands import main as cli
from fewshot_blo.commands.group import Meeting, of_this_attempt


def test_attempts_do_not_read_what_others_left() -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as threads:
        for attempt in range(3):  # What an attempt leaves is there for the next one.

            def meet(rank: int) -> Store:
                return of_this_attempt(store, rank, 3)

            met = list(threads.map(meet, range(3)))
            assert not any(own.check(["address"]) for own in met)
            met[attempt].set("address", str(attempt))
            assert [own.get("address") for own in met] == [str(attempt).encode()] * 3


def test_the_first_to_fail_reports() -> None:
    met = [Meeting(HashStore(), rank, 2) for rank in range(2)]
    same = [Meeting(met[0].store, rank, 2) for rank in range(2)]
    assert (same[1].speaks(), same[0].speaks(), same[1].speaks()) == (True, False, True)


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["finetune", "x"], "finetune runs in one process"),
        ({"WORLD_SIZE": "2"}, ["train"], "variable RANK expected, but not set: start several"),
        ({"WORLD_SIZE": "many"}, ["train"], "WORLD_SIZE is 'many': it must be a number"),
    ],
)
def test_what_cannot_run_in_several_processes(
    variables: dict[str, str],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_reports_what_all_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["predict", "x"]) == 1
    assert capsys.readouterr() == ("", "")

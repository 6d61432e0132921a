"""Candidates tried by several processes give the classifier of one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewshot_blo.finetune import Source, fit, read_labelled
from fewshot_blo.finetune.files import save_classifier


@pytest.mark.slow
def test_jobs_choose_and_fit_what_one_process_does(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = Source("small_images:network")
    data = read_labelled(make_folder(3, 3), 16)
    one = fit(data, source.load(), source, progress=False)
    several = fit(data, source.load(), source, jobs=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 jobs of 1 thread each")
    assert len(said) == 1 + len(one[1].held_out)
    assert not list(scratch.iterdir())
    assert [h.candidate.name for h in several[1].held_out] == [
        h.candidate.name for h in one[1].held_out
    ]
    for found, expected in zip(several[1].held_out, one[1].held_out, strict=True):
        assert torch.equal(found.answers, expected.answers)
        assert found.scale == expected.scale
    assert several[1].chosen == one[1].chosen
    assert several[1].promise == one[1].promise
    assert several[1].reason == one[1].reason
    for name, (classifier, _) in (("one", one), ("several", several)):
        save_classifier(classifier, tmp_path / f"{name}.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "several.pt").read_bytes()

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from documents import run_block
from oracles import Quadratic, assert_same
from small_runs import make_dataset, make_problem, make_sampler

from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.hypergrad import outer_step
from fewshot_blo.records.shard import Shard

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_block("README.md", 0)
    assert re.search(r"^\d\d\.\d\d ± \d\.\d\d % \(", capsys.readouterr().out, re.MULTILINE)


def test_weights_of_noise_learn_to_decay() -> None:
    torch.manual_seed(0)
    decay = run_block("README.md", 1)["solution"].outer["decay"]
    assert decay[2:].mean() > decay[:2].max()  # Two weights of twenty carry the signal.


def test_the_strategy_is_one() -> None:
    """Of a quadratic: its inner steps are those of the formula, and F_u is all of its gradient."""
    strategy = run_block("docs/guides/extending.md", 0)["Alternating"]()
    quadratic = Quadratic.random()
    step, state = outer_step(strategy, quadratic.bilevel(), strategy.init())
    assert_same(step.gradient, {"u": quadratic.r * quadratic.u.detach()})
    assert_same(step.inner, Quadratic.cut(quadratic.descent(5, 0.1)[0]))
    assert state.inner is step.inner


@pytest.mark.slow
def test_an_evaluation_in_parts_is_that_of_one_call() -> None:
    problem, sampler = make_problem(), make_sampler(make_dataset())
    found = run_block("docs/guides/scaling.md", 1)["in_parts"](problem, sampler, 3)
    assert torch.equal(found.values, evaluate(problem, sampler, tasks=600).values)


def test_an_array_of_slurm_has_each_part_once(tmp_path: Path) -> None:
    """The lines of the script, with the command replaced by one that writes its last word."""
    text = (ROOT / "docs" / "guides" / "scaling.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^    (#!/bin/bash\n(?:    .*\n)+)", text, re.MULTILINE)
    (script,) = (script for script in scripts if "--array" in script)
    lines = f'fewshot-blo() {{ echo "${{@: -1}}"; }}\n{textwrap.dedent("    " + script)}'
    first, last = map(int, re.findall(r"--array=(\d+)-(\d+)", script)[0])
    parts = []
    for number in range(first, last + 1):
        slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(last + 1)}
        done = subprocess.run(
            ["bash", "-c", lines],
            env={**os.environ, **slurm, "SLURM_CPUS_PER_TASK": "4"},
            capture_output=True,
            text=True,
            check=True,
        )
        parts.append(Shard.read(done.stdout.strip()))
    assert parts == [Shard(number, last + 1) for number in range(1, last + 2)]


def test_training_in_a_group_is_that_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    run_block("docs/guides/scaling.md", 0)
    assert (tmp_path / "runs/group/best.pt").exists()

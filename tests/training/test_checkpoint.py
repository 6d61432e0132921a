from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_identical, make_initialization, make_problem
from torch import nn

from fewshot_blo.errors import CheckpointError
from fewshot_blo.hypergrad import Penalty
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.training.checkpoint import Checkpoint, load, random_state, save, set_random_state


def make_checkpoint() -> Checkpoint:
    problem = make_problem()
    inner = {"head.weight": torch.randn(2, 3, 8)}
    return Checkpoint(
        step=7,
        config={"train": {"steps": 9}, "way": (3, 5), "root": "", "prox": None},
        outer=problem.outer,
        buffers=dict(problem.network.named_buffers()),
        optimizer=torch.optim.Adam(list(problem.outer.values())).state_dict(),
        strategy=replace(Penalty().for_training().init(), inner=inner, multipliers=inner).plain(),
        settled={"backend": "loop", "chunk": 2},
        best={"step": 5, "value": 0.5},
        random_state=random_state(),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pt"


def change(path: Path, **parts: Any) -> None:
    """Writes a checkpoint with some of its parts replaced, or left out where None."""
    data = {**torch.load(path, weights_only=True), **parts}
    torch.save({name: part for name, part in data.items() if part is not None}, path)


def test_everything_comes_back(path: Path) -> None:
    saved = make_checkpoint()
    save(saved, path)
    loaded = load(path)
    for name in ("step", "config", "optimizer", "settled", "best", "random_state", "buffers"):
        assert_identical(getattr(loaded, name), getattr(saved, name))
    assert_identical(loaded.outer, {name: p.detach() for name, p in saved.outer.items()})
    assert_identical(loaded.strategy, saved.strategy)
    state = Penalty().for_training().init().restored(loaded.strategy)
    assert_identical(state.plain(), saved.strategy)


def test_adam_counts_its_steps_on_the_host(path: Path) -> None:
    """Tensors on the device "meta" have no values: a count that had been there would be lost."""
    problem = make_problem()
    optimizer = torch.optim.AdamW(list(problem.outer.values()))
    for leaf in problem.outer.values():
        leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    save(replace(make_checkpoint(), optimizer=optimizer.state_dict()), path)
    loaded = load(path, "meta")
    on_device = [p.detach().to("meta").requires_grad_() for p in problem.outer.values()]
    resumed = torch.optim.AdamW(on_device)
    resumed.load_state_dict(dict(loaded.optimizer))
    for leaf in on_device:
        assert resumed.state[leaf]["step"].device.type == "cpu"
        assert float(resumed.state[leaf]["step"]) == 1
        assert resumed.state[leaf]["exp_avg"].device.type == "meta"
    state = Penalty().for_training().init().restored(loaded.strategy, "meta")
    parts = [loaded.outer, loaded.buffers, state.inner, state.schedules]
    assert {p.device.type for part in parts for p in part.values()} == {"meta"}


def test_restored_variables_are_the_same_leaves(path: Path) -> None:
    save(make_checkpoint(), path)
    problem = make_problem()
    leaves = dict(problem.outer)
    with torch.no_grad():
        for p in (*leaves.values(), *problem.network.buffers()):
            p.add_(1)
    problem.backend = "batched"
    load(path).restore(problem)
    assert str(problem.backend) == "loop"
    for name, p in make_problem().outer.items():
        assert problem.outer[name] is leaves[name]
        assert torch.equal(leaves[name], p)
    for (_, ours), (_, theirs) in zip(
        problem.network.named_buffers(), make_problem().network.named_buffers(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_random_state_continues() -> None:
    state = random_state()
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_full_disk_leaves_the_previous_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_checkpoint(), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.*free disk space"):
        save(replace(make_checkpoint(), step=8), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.slow
def test_limit_on_file_size(path: Path) -> None:
    save(make_checkpoint(), path)
    before = path.read_bytes()
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from test_checkpoint import make_checkpoint\n"
        "from fewshot_blo.training.checkpoint import save\n"
        "from fewshot_blo.errors import CheckpointError\n"
        "checkpoint = make_checkpoint()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        f"    save(checkpoint, Path({str(path)!r}))\n"
        "except CheckpointError as error:\n"
        "    sys.exit(str(error))\n"
    )
    tests = Path(__file__).resolve().parents[1]
    places = map(str, (tests.parent, tests, Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        check=False,
    )
    assert result.stderr.startswith(f"cannot write the checkpoint {path}: [Errno 27] File too l")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_pickle_does_not_run(path: Path, tmp_path: Path) -> None:
    for data in (
        Exploit(tmp_path / "hacked"),
        {"format": 1, "outer": Exploit(tmp_path / "hacked")},
    ):
        torch.save(data, path)
        with pytest.raises(CheckpointError, match="holds more than tensors and plain data"):
            load(path)
        path.write_bytes(pickle.dumps(data))
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load(path)
    assert not (tmp_path / "hacked").exists()


def test_a_whole_module_is_no_checkpoint(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain data"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated(path: Path, share: float) -> None:
    save(make_checkpoint(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read .*write it again"):
        load(path)


@pytest.mark.parametrize("seed", range(8))
def test_garbage(path: Path, seed: int) -> None:
    head = (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04}")[seed % 4]
    path.write_bytes(head + torch.randint(256, (500,)).to(torch.uint8).numpy().tobytes())
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load(path)


def test_missing(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*check the path"):
        load(path)
    path.mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(path)


@pytest.mark.parametrize("data", [{"format": 2}, {"state_dict": {}}, [1, 2], torch.zeros(2)])
def test_other_formats(path: Path, data: Any) -> None:
    torch.save(data, path)
    with pytest.raises(
        CheckpointError, match=r"not a checkpoint of format 1 .*use a file written by train"
    ):
        load(path)


@pytest.mark.parametrize(
    "parts",
    [
        {"outer": None},
        {"random_state": None},
        {"strategy": None},
        {"strategy": 3},
        {"outer": [1, 2]},
        {"outer": {"weight": "no tensor"}},
        {"buffers": 3},
        {"random_state": {"cpu": 1, "cuda": []}},
    ],
)
def test_missing_or_wrong_parts(path: Path, parts: dict[str, Any]) -> None:
    save(make_checkpoint(), path)
    change(path, **parts)
    with pytest.raises(CheckpointError, match="lacks a part of a checkpoint"):
        load(path)


def test_another_problem_is_named_by_what_differs(path: Path) -> None:
    save(make_checkpoint(), path)
    checkpoint = load(path)
    with pytest.raises(CheckpointError, match=r"\['0\.blocks.* are in only one"):
        checkpoint.restore(make_initialization())
    wide = SharedEncoder(nn.Sequential(Conv4(hidden=16)), learn_prox=True)
    with pytest.raises(CheckpointError, match=r"has shape \[8, 1, 3, 3\] .* but \[16, 1, 3, 3\]"):
        checkpoint.restore(wide)


def test_another_problem_starts_from_the_encoder(path: Path) -> None:
    """Of a shared encoder for an initialisation: names differ by ``encoder.``."""
    save(make_checkpoint(), path)
    saved, problem = load(path), make_initialization()
    for p in problem.outer.values():
        p.data.normal_()
    head = problem.outer["head.weight"].detach().clone()
    saved.start(problem)
    encoder = {n: p for n, p in problem.outer.items() if n.startswith("encoder.")}
    assert encoder
    for name, p in encoder.items():
        assert torch.equal(p, saved.outer[name.removeprefix("encoder.")])
    assert torch.equal(problem.outer["head.weight"], head)


def test_another_encoder_cannot_start_from_it(path: Path) -> None:
    save(make_checkpoint(), path)
    with pytest.raises(CheckpointError, match="has another configuration"):
        load(path).start(SharedEncoder(Conv4(hidden=16)))

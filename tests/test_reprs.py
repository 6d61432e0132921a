"""What an interpreter and a notebook show: sizes in the terms of the field, never tensors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import make_ragged_batch
from PIL import Image
from small_runs import STRATEGIES, make_dataset, make_encoder, make_problem, make_sampler, run
from torch import Tensor

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.finetune.classifier import Predictions
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.hypergrad import State
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization, Pretraining, SharedEncoder
from fewshot_blo.records.shapes import kind, shapes, size
from fewshot_blo.solving import PlainProblem, solve
from fewshot_blo.tasks import Augmentation, ClassDataset, EpisodicSampler, Splits, TaskBatch
from fewshot_blo.training import checkpoint as checkpoints


class Page(HTMLParser):
    """Text and pictures of a piece of HTML whose tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "img":
            self.open.append(tag)
            return
        found: Mapping[str, Any] = dict(attrs)
        start, data = found["src"].split(",")
        assert start == "data:image/png;base64"
        assert found["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            self.pictures.append(np.asarray(image.convert("RGB")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def coloured(channels: int = 3) -> ClassDataset:
    shades = torch.arange(6).mul(25).add(50).byte().repeat_interleave(6)
    images = shades[:, None, None, None].repeat(1, channels, 10, 10)
    labels = torch.arange(6).repeat_interleave(6)
    return ClassDataset(images, labels, tuple(f"class{c}" for c in range(6)))


def features(batch: TaskBatch) -> TaskBatch:
    return replace(batch, support_x=batch.support_x.flatten(2), query_x=batch.query_x.flatten(2))


def test_tensors_in_words() -> None:
    tensors = {"weight": torch.zeros(5, 64), "bias": torch.zeros(5)}
    assert shapes(tensors) == "weight [5, 64], bias [5], float32 on cpu"
    assert shapes({}) == size({}) == "none"
    assert size(tensors) == "2 tensors, 325 entries, float32 on cpu"
    assert size({"u": torch.zeros(())}) == "1 tensor, 1 entries, float32 on cpu"
    many = {f"p{n}": torch.zeros(1000, n) for n in range(6)}
    assert shapes(many) == (
        "p0 [1000, 0], p1 [1000, 1], p2 [1000, 2], 3 more (15,000 entries in all), float32 on cpu"
    )
    assert kind(torch.zeros(2), torch.zeros(2, dtype=torch.int64, device="meta")) == (
        "float32 on cpu and int64 on meta"
    )


def test_a_batch_of_tasks() -> None:
    batch = make_sampler(make_dataset(), tasks=4).batch(0)
    assert repr(batch) == (
        "TaskBatch(4 tasks, 3-way 1-shot 2 queries a class, images [1, 16, 16] float32 on cpu)"
    )
    assert repr(features(batch[:1])) == (
        "TaskBatch(1 task, 3-way 1-shot 2 queries a class, inputs [256] float32 on cpu)"
    )
    assert "up to 3-way 2-shot " in repr(make_ragged_batch())
    rows = replace(batch, query_x=batch.query_x[:, :1], query_y=batch.query_y[:, :1])
    assert "3-way, 3 support and 1 query rows" in repr(rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_notebook_draws_a_batch(channels: int) -> None:
    batch = make_sampler(coloured(channels), tasks=4).batch(0)
    html = batch._repr_html_()
    assert html is not None
    page = Page(html)
    assert "".join(page.text) == repr(batch)
    (picture,) = page.pictures
    colours = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}
    for index in batch.classes[:2].flatten().tolist():  # Two tasks of three classes are shown.
        assert (50 + 25 * index,) * 3 in colours


def test_a_large_task_is_drawn_alone() -> None:
    heights = []
    for way in (6, 12):
        sampler = make_sampler(make_dataset(12), way=way, tasks=2)
        heights.append(Page(sampler.batch(0)._repr_html_() or "").pictures[0].shape[0])
    assert heights[0] == pytest.approx(heights[1], rel=0.1)


def test_what_is_no_image_is_not_drawn() -> None:
    batch = make_sampler(make_dataset()).batch(0)
    assert features(batch)._repr_html_() is None
    five = torch.zeros(36, 5, 4, 4, dtype=torch.uint8)
    spectral = replace(make_dataset(), inputs=five)
    assert make_sampler(spectral)._repr_html_() is None


def test_padded_tasks_and_odd_rows_are_drawn() -> None:
    sampler = make_sampler(make_dataset(), way=(2, 4), shot=(1, 3), tasks=5)
    assert Page(sampler.batch(0)._repr_html_() or "").pictures
    batch = sampler.batch(0)
    few = replace(batch, query_x=batch.query_x[:, :1], query_y=batch.query_y[:, :1])
    assert Page(few._repr_html_() or "").pictures


def test_a_sampler_and_its_names() -> None:
    dataset = replace(make_dataset(), class_names=tuple(f"<b>{c}&" for c in range(6)))
    sampler = make_sampler(dataset, tasks=4, seed=7)
    assert repr(sampler) == (
        "EpisodicSampler(3-way 1-shot 2 queries a class, 4 tasks a batch, seed 7, float32 on cpu\n"
        "  from ClassDataset(6 classes, 6 images each, 36 in all, [1, 16, 16] uint8 on cpu))"
    )
    page = Page(sampler._repr_html_() or "")
    assert "".join(page.text) == repr(sampler)
    assert len(page.pictures) == 1
    augmented = make_sampler(dataset, augment=Augmentation(flip=1.0))
    assert "Augmentation(" in repr(augmented)


def test_a_caption_is_escaped() -> None:
    batch = make_sampler(make_dataset()).batch(0)
    assert Page(batch.drawn("<script>&")).text == ["<script>&"]
    assert "<script>" not in batch.drawn("<script>")


def test_data_sets() -> None:
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    uneven = ClassDataset.from_counts(images, {"a": 2, "b": 3})
    assert repr(uneven) == (
        "ClassDataset(2 classes, 2 to 3 images each, 5 in all, [3, 8, 8] uint8 on cpu)"
    )
    splits = Splits(make_dataset(seed=0), make_dataset(4, seed=1), make_dataset(1, seed=2))
    assert repr(splits).splitlines() == [
        "Splits",
        "  train: 6 classes, 6 images each, 36 in all, [1, 16, 16] uint8 on cpu",
        "  validation: 4 classes, 6 images each, 24 in all, [1, 16, 16] uint8 on cpu",
        "  test: 1 class, 6 images each, 6 in all, [1, 16, 16] uint8 on cpu",
    ]


def test_problems() -> None:
    encoder = Conv4(hidden=8)
    count = sum(p.numel() for p in encoder.parameters())
    tensors = len(list(encoder.parameters()))
    assert repr(SharedEncoder(encoder, learn_prox=True)) == (
        "SharedEncoder(Conv4, LinearHead from prototypes, prox 0.5 at the start, learned, "
        f"backend auto, float32 products\n  outer: {tensors + 1} tensors, {count + 1:,} entries, "
        "float32 on cpu)"
    )
    assert repr(Pretraining(encoder, classes=64, features=8)).startswith("Pretraining(Conv4, ")
    network = classifier(encoder, 8, 3)
    anil = Initialization(network, adapted="head.", prox=0.5)
    assert repr(anil) == (
        f"Initialization({type(network).__name__}, head's start learned, prox 0.5, backend auto, "
        f"float32 products\n  outer: {tensors + 2} tensors, {count + 27:,} entries, float32 on cpu"
        "\n  adapted: 2 tensors, 27 entries, float32 on cpu)"
    )
    assert "head's start prototypes" in repr(Initialization(network, start="prototypes"))


def test_bilevel_problems_and_their_steps() -> None:
    problem = make_problem()
    batch = make_sampler(make_dataset()).batch(0)
    bilevel = problem.bind(batch, "transductive", torch.arange(3)).bilevel
    lines = repr(bilevel).splitlines()
    assert lines[0] == "Bilevel(3 tasks"
    assert lines[1] == "  outer: features [3, 9, 8], log_prox [], float32 on cpu"
    assert lines[2].startswith("  inner: head.weight [3, 3, 8]")
    penalty = STRATEGIES["penalty"]
    state = penalty.init()
    step = penalty.hypergradient(bilevel, state)
    first, gradient, inner = repr(step).splitlines()
    assert first.startswith("PenaltyStep(3 tasks, mean outer loss ")
    assert gradient == "  gradient: features [3, 9, 8], log_prox [], float32 on cpu"
    assert inner.startswith("  inner: head.weight [3, 3, 8]")
    schedules, inner, _ = repr(penalty.advance(state, step)).splitlines()
    assert schedules.startswith("PenaltyState(rho ")
    assert inner.startswith("  inner: head.weight [3, 3, 8]")
    assert repr(State()) == "State(\n  inner: none)"


@pytest.mark.filterwarnings("ignore::fewshot_blo.errors.NotSolvedWarning")
def test_a_plain_problem_and_its_solution() -> None:
    problem = PlainProblem(
        {"u": torch.zeros(3)},
        {"v": torch.zeros(2, 3)},
        lambda v, u: ((v["v"] - u["u"]) ** 2).sum(),
        lambda v, u: ((v["v"] - 1) ** 2).sum() + u["u"].square().sum(),
    )
    assert repr(problem) == (
        "PlainProblem(\n  outer: u [3], float32 on cpu\n  inner: v [2, 3], float32 on cpu)"
    )
    optimizer = partial(torch.optim.SGD, lr=0.1)
    found = solve(problem, STRATEGIES["unroll"], optimizer, steps=4, every=2, progress=False)
    first, outer, inner = repr(found).splitlines()
    assert (
        first
        == f"Solution(step 4, 2 records, last outer loss {found.history[-1]['loss/outer']:.4g}"
    )
    assert (outer, inner) == (
        "  outer: u [3], float32 on cpu",
        "  inner: v [2, 3], float32 on cpu)",
    )
    stopped = replace(found, interrupted=True, history=[])
    assert repr(stopped).startswith("Solution(interrupted at step 4, 0 records, ")


def test_a_run(tmp_path: Path) -> None:
    result = run(tmp_path)
    accuracy = f"{100 * result.validation:.2f} %"
    assert repr(result) == (
        f"TrainResult(step 6, best validation accuracy {accuracy} in {tmp_path / 'best.pt'})"
    )
    assert "interrupted at step 6" in repr(replace(result, interrupted=True))
    saved = checkpoints.load(result.best)
    assert repr(saved).startswith(f"Checkpoint(step {saved.step}\n  outer: ")


def make_evaluation(**changes: Any) -> Evaluation:
    accuracy = torch.tensor([0.5, 0.7], dtype=torch.float64)
    counts = Counts.of_confusion(torch.tensor([[5, 5], [3, 7]]))
    counts.bins[9] = torch.tensor([int(12.62 * 2**30), 0, 12, 20])
    found = Evaluation("support", "5-way, seed 0", 3, accuracy, ("a", "b"), counts)
    return replace(found, **changes)


def test_an_evaluation() -> None:
    found = make_evaluation()
    assert repr(found) == (
        "Evaluation(60.00 ± 19.60 % (support, 2 tasks, 5-way, seed 0, 3 inner steps), "
        "calibration error 3.1 %, 2 classes)"
    )
    assert Page(found._repr_html_()).text == [
        *("norm", "accuracy", "tasks", "protocol", "calibration error"),
        *("support", "60.00 ± 19.60 %", "2", "5-way, seed 0, 3 inner steps", "3.1 %"),
    ]
    odd = make_evaluation(episodes="<i>5-way & more", values=found.values[:1])
    assert "<i>" not in odd._repr_html_()
    assert Page(odd._repr_html_()).text[6:9] == ["50.00 %", "1", "<i>5-way & more, 3 inner steps"]


def test_predictions_and_labelled_images() -> None:
    known = torch.tensor([True, True, False])
    assert repr(Predictions(torch.zeros(3, 2), torch.zeros(3), known)) == (
        "Predictions(3 images, 2 classes, 1 images of none of them, float32 on cpu)"
    )
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    data = LabelledImages(images, torch.tensor([0, 1, 1]), ("a", "b"), ("1", "2", "3"), ("4: no",))
    assert repr(data) == "LabelledImages(3 images of 2 classes, [3, 8, 8] uint8 on cpu, 1 left out)"


def total(v: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([p.sum() for p in v.values()]).sum()


def test_nothing_shows_tensors() -> None:
    sampler: EpisodicSampler = make_sampler(make_dataset())
    shown = [
        sampler,
        sampler.batch(0),
        SharedEncoder(make_encoder()),
        State({"v": torch.zeros(2, 3)}),
        Bilevel({"u": torch.zeros(2, requires_grad=True)}, {"v": torch.zeros(2, 3)}, total, total),
        make_evaluation(),
    ]
    for item in shown:
        assert "tensor(" not in repr(item)
        assert len(repr(item).splitlines()) <= 4

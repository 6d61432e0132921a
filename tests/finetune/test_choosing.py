"""Choosing within a limit of time, and Ctrl-C while candidates are tried."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import LabelledImages, Source, fit, read_labelled
from fewshot_blo.finetune.candidates import BALANCED, TAILS, Candidate, candidates
from fewshot_blo.finetune.choosing import Choosing
from fewshot_blo.finetune.estimator import FewShotClassifier
from fewshot_blo.finetune.plays import plays, questions

choosing: Any = importlib.import_module("fewshot_blo.finetune.choosing")
Make = Callable[..., Choosing]


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> LabelledImages:
    return read_labelled(make_folder(4, 4, 4), 16)


@pytest.fixture
def make(data: LabelledImages, small_networks: str) -> Make:
    """A choice among candidates, of a number of minutes."""
    parts = plays(data.labels, data.groups, repeats=1)
    asked = questions(parts, data.labels, data.groups)

    def choice(minutes: float | None) -> Choosing:
        return Choosing(data, Source(small_networks).load(), parts, asked, minutes)

    return choice


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A view of all images takes 10 s, the plays of a head 2 s, a step of a play 0.5 s."""
    found = Clock()
    real_embed, real_hold, real_adapt = choosing.embed, choosing.hold_out, choosing.adapt_to

    def embed(network: Any, images: Tensor, **settings: Any) -> Any:
        features = real_embed(network, images, **settings)
        found.now += 10.0 * network.mean.count if hasattr(network, "mean") else 10.0
        return features

    def hold_out(candidate: Candidate, *arguments: Any) -> Any:
        found.now += 2.0 if candidate.adapts == "head" else 50.0
        return real_hold(candidate, *arguments)

    def adapt_to(*arguments: Any) -> Any:
        found.now += 0.5
        return real_adapt(*arguments)

    monkeypatch.setattr(choosing, "embed", embed)
    monkeypatch.setattr(choosing, "hold_out", hold_out)
    monkeypatch.setattr(choosing, "adapt_to", adapt_to)
    monkeypatch.setattr(choosing.time, "perf_counter", found.perf_counter)
    return found


def options(images: int = 12) -> tuple[Candidate, ...]:
    return candidates("auto", "auto", images=images, classes=3)


def test_the_cheapest_come_first() -> None:
    found = options(100)
    assert [c.views for c in found[:3]] == ["one", "mirrored", "crops"]
    assert found[3:] == TAILS


@pytest.mark.parametrize(
    ("seconds", "tried"), [(1, 1), (12, 1), (33, 1), (35, 2), (130, 2), (140, 3), (None, 3)]
)
def test_what_does_not_fit_is_left_out_and_named(
    seconds: float | None,
    tried: int,
    make: Make,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 12 s for one view, 22 s for two and 102 s for ten.
    choice = make(None if seconds is None else seconds / 60)
    found = choice.held_out(options())
    assert [h.candidate for h in found] == list(options()[:tried])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == tried + (tried < 3)
    assert [line.rpartition(", ")[2] for line in said[:tried]] == ["12.0 s", "22.0 s", "102.0 s"][
        :tried
    ]
    if tried < 3:
        names = ", ".join(f"'{c.name}'" for c in options()[tried:])
        assert said[-1] == f"skipped for lack of time: {names}"


def test_the_time_of_a_part_of_the_network_is_that_of_its_first_step(
    make: Make, clock: Clock
) -> None:
    tail = TAILS[0]
    plays_of = len(make(None).parts)
    expected = 0.5 * tail.inner.most * plays_of
    for minutes, tried in ((22.4 + expected, 1), (22.6 + expected, 2)):
        start = clock.now
        found = make(minutes / 60).held_out((BALANCED, tail))
        assert [h.candidate for h in found] == [BALANCED, tail][:tried]
        assert clock.now - start == pytest.approx(22.5 + 50 * (tried - 1))


def test_features_that_are_there_take_no_time(make: Make, clock: Clock) -> None:
    twice = (BALANCED, Candidate("ridge", head="ridge"))
    assert len(make(14.6 / 60).held_out(twice)) == 2


def test_an_interrupt_ends_the_choice_among_those_tried(
    data: LabelledImages,
    small_networks: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = choosing.hold_out, []

    def hold_out(*arguments: Any) -> Any:
        calls.append(arguments[0])
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(choosing, "hold_out", hold_out)
    source, stop = Source(small_networks), [3]
    classifier, selection = fit(data, source.load(), source)
    assert [h.candidate.views for h in selection.held_out] == ["one", "mirrored"]
    assert "the best of the 2 of 3 candidates tried so far is used; Ctrl-C again stops" in (
        capsys.readouterr().out
    )
    assert len(classifier.predict(data.images).probabilities) == len(data.labels)
    # Before there is a candidate, and in a program that prints nothing, it stops.
    for stop[0], progress in ((1, True), (2, False)):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            fit(data, source.load(), source, progress=progress)


def test_the_estimator_warns(data: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    network = "small_networks:network"
    with pytest.warns(
        UserWarning, match="skipped for lack of time: 'balanced head, 2 views', 'bal"
    ):
        model = FewShotClassifier(network, minutes=1e-9).fit(list(data.images), data.labels.numpy())
    assert model.accuracy_ is not None
    with pytest.raises(ConfigurationError, match="minutes is 0: it must be positive"):
        FewShotClassifier(network, minutes=0).fit(list(data.images), data.labels.numpy())


def test_on_the_command_line(
    make_folder: Callable[..., Path],
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_folder(3, 3, 3)
    words = ["finetune", str(root), f"--backbone={small_networks}", f"--output={tmp_path / 'o'}"]
    assert cli.main([*words, "--minutes=0"]) == 2
    assert "minutes is 0.0: it must be positive" in capsys.readouterr().err
    start = time.perf_counter()
    assert cli.main([*words, "--minutes=0.000001"]) == 0
    assert time.perf_counter() - start < 60
    out = capsys.readouterr().out
    assert "skipped for lack of time: 'balanced head, 2 views', 'balanced head, 10 views'" in out
    assert "accuracy to expect on new images" in out


def test_probing_changes_nothing(make: Make) -> None:
    torch.manual_seed(0)
    alone = make(None).held_out((BALANCED,))[0]
    choice = make(None)
    after = choice.held_out((BALANCED, TAILS[0], BALANCED))[2]
    torch.testing.assert_close(alone.answers, after.answers)

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SETTINGS, make_folder, run

from fewshot_blo.backbones.encoders import own
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.result import Evaluation, paired_difference
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.measuring import Measured
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.report import evaluate_checkpoints, report
from fewshot_blo.experiments.request import (
    EvaluationRequest,
    check_comparable,
    other_data,
    requested,
)
from fewshot_blo.experiments.settings import Config, Encoder, EpisodeSettings, Problem
from fewshot_blo.experiments.unseen import as_trained, unseen
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.objectives import CrossEntropy
from fewshot_blo.problems import Initialization, NormMode, SharedEncoder
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.tasks import ClassDataset, DataError, EpisodicSampler, Splits, folder, glyphs
from fewshot_blo.tasks.catalogue import CIFARFS, FC100, Folder, MiniImageNet
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.training.checkpoint import Checkpoint, load, save
from fewshot_blo.training.run import BEST
from fewshot_blo.training.train import train

REQUEST = EvaluationRequest(tasks=7)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = make_folder(tmp_path_factory.mktemp("data"))
    return Config(
        data=Folder(str(root), size=16, color=False),
        episodes=EpisodeSettings(way=3, query=2, validation_query=3, tasks=3),
        encoder=Encoder(Conv4, {"hidden": 8}),
        problem=Problem(SharedEncoder, {"backend": "loop"}),
        strategy=Unroll(InnerSteps(2, SGD(0.2))),
        adaptation=InnerSteps(4, SGD(0.3)),
        train=replace(SETTINGS, steps=1),
        device="cpu",
    )


def root_of(config: Config) -> Path:
    return Path(vars(config.data)["root"])


def trained(config: Config, folder: Path) -> Path:
    splits = config.data.load()
    train(
        build_problem(config, splits.train.images.shape[1:]),
        config.strategy,
        build_sampler(config, splits.train, training=True),
        build_sampler(config, splits.validation, training=False),
        folder=folder,
        settings=config.train,
        adaptation=config.adaptation,
        config=config.plain(),
        progress=False,
    )
    return folder / BEST


@pytest.fixture(scope="module")
def paths(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of two seeds, and of an initialisation."""
    initialization = Problem(Initialization, {"backend": "loop"})
    return [
        trained(c, tmp_path_factory.mktemp("run"))
        for c in (config, replace(config, seed=1), replace(config, problem=initialization))
    ]


def test_figures_are_those_of_evaluate(config: Config, paths: list[Path]) -> None:
    (evaluations,) = evaluate_checkpoints(paths[:1], REQUEST).values()
    splits = config.data.load()
    problem = build_problem(config, splits.test.images.shape[1:])
    load(paths[0]).restore(problem)
    sampler = EpisodicSampler(splits.test, way=3, shot=1, query=3, tasks=2, seed=1000)
    assert [e.norm for e in evaluations] == ["transductive", "support", "running"]
    for evaluation in evaluations:
        expected = evaluate(
            problem, sampler, tasks=7, norm=evaluation.norm, adaptation=config.adaptation
        )
        assert evaluation.protocol == expected.protocol
        assert torch.equal(evaluation.values, expected.values)


@pytest.mark.slow
def test_without_progress_nothing_is_printed(
    paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = evaluate_checkpoints(paths, REQUEST, progress=False)
    assert capsys.readouterr() == ("", "")
    assert list(quiet) == [str(path) for path in paths]


@pytest.mark.slow
def test_a_table_compares_every_checkpoint_with_the_first(
    paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate_checkpoints(paths, REQUEST)
    lines = capsys.readouterr().out.splitlines()
    first, second, third = results.values()
    assert [e.norm for e in third] == ["transductive", "support", "running"]
    printed = [line.strip() for line in lines if "same tasks" in line]
    pairs = [*zip(first, second, strict=True), *zip(first, third, strict=True)]
    for line, (reference, evaluation) in zip(printed, pairs, strict=True):
        mean, half = paired_difference(reference, evaluation)
        assert line == f"{100 * mean:+.2f} ± {100 * half:.2f} minus {paths[0]}, same tasks"
    assert sum(line.startswith("  hardest classes") for line in lines) == 3


def test_the_hardest_classes_come_first(
    paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (evaluations,) = evaluate_checkpoints(paths[:1], REQUEST).values()
    line = next(s for s in capsys.readouterr().out.splitlines() if "hardest" in s)
    by_class = dict(
        zip(evaluations[0].class_names, evaluations[0].class_accuracy.tolist(), strict=True)
    )
    shares = [int(part.split()[1]) for part in line.split(": ")[1].split(", ")]
    assert shares == [round(100 * value) for value in sorted(by_class.values())[:5]]


def test_the_most_confused_classes_come_first(
    paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (evaluations,) = evaluate_checkpoints(paths[:1], REQUEST).values()
    line = next(s for s in capsys.readouterr().out.splitlines() if "confusions" in s)
    names, confusion = evaluations[0].class_names, evaluations[0].confusion
    for words in line.split(": ")[1].split(", "):
        first, _, second, share, _ = words.split()
        row = confusion[names.index(first)]
        assert int(share) == round(100 * float(row[names.index(second)] / row.sum()))


@pytest.mark.parametrize(
    ("changes", "protocol"),
    [
        ({}, "3-way 1-shot 3 queries a class, seed 1000, 4 inner steps"),
        (
            {"way": 2, "shot": 2, "query": 1, "seed": 0, "steps": 0},
            "2-way 2-shot 1 queries a class, seed 0, 0 inner steps",
        ),
    ],
)
def test_the_request_beats_the_settings_of_the_run(
    changes: dict[str, Any], protocol: str, paths: list[Path]
) -> None:
    (evaluations,) = evaluate_checkpoints(paths[:1], replace(REQUEST, **changes)).values()
    assert {e.protocol for e in evaluations} == {protocol}


def test_one_norm_mode(paths: list[Path]) -> None:
    (every,) = evaluate_checkpoints(paths[:1], REQUEST).values()
    (one,) = evaluate_checkpoints(paths[:1], replace(REQUEST, norm="running")).values()
    assert [e.norm for e in one] == ["running"]
    assert torch.equal(one[0].values, every[2].values)


def test_each_file_is_read_once(
    config: Config, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = config.data.load()
    (expected,) = evaluate_checkpoints(paths[:1], REQUEST).values()
    opened = []

    def count(path: Path, *arguments: Any) -> Checkpoint:
        opened.append(path)
        return load(path, *arguments)

    def refuse(*arguments: Any) -> Splits:
        raise AssertionError("the data set was handed over")

    monkeypatch.setattr("fewshot_blo.training.checkpoint.load", count)
    monkeypatch.setattr("fewshot_blo.tasks.catalogue.DataSet.load", refuse)
    (found,) = evaluate_checkpoints(paths[:1], REQUEST, splits).values()
    assert opened == paths[:1]
    assert all(torch.equal(a.values, b.values) for a, b in zip(found, expected, strict=True))


def test_splits_hold_their_own_classes(config: Config, paths: list[Path]) -> None:
    for name, dataset in config.data.load():
        request = replace(REQUEST, split=name)  # type: ignore[arg-type]
        (evaluations,) = evaluate_checkpoints(paths[:1], request).values()
        assert set(evaluations[0].class_names) <= set(dataset.class_names)


@pytest.mark.slow
def test_another_data_set(paths: list[Path], tmp_path: Path) -> None:
    """What was trained on one folder is tested on another, and on embedded glyphs."""
    other = make_folder(tmp_path / "other", classes=30)
    (evaluations,) = evaluate_checkpoints(paths[:1], replace(REQUEST, root=str(other))).values()
    test = folder.load(other, size=16, color=False).test
    assert set(evaluations[0].class_names) <= set(test.class_names)
    request = replace(REQUEST, data="Glyphs", size=28)
    (evaluations,) = evaluate_checkpoints(paths[:1], request).values()
    assert set(evaluations[0].class_names) <= set(glyphs.load().test.class_names)
    assert len(evaluations[0].values) == 7


def test_another_data_set_comes_in_the_size_of_the_training_images(paths: list[Path]) -> None:
    request = replace(REQUEST, data="Glyphs", norm="support")
    for path in (paths[0], paths[2]):  # Of the initialisation, a head that no other size fits.
        (usual,) = evaluate_checkpoints([path], request).values()
        (same,) = evaluate_checkpoints([path], replace(request, size=16)).values()
        assert torch.equal(usual[0].values, same[0].values)


def test_another_data_set_is_seen_in_grey_or_in_colour_as_training_images_were(
    config: Config, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_colour = replace(config, data=config.data.changed(color=True))
    request = replace(REQUEST, data="Glyphs", size=28, norm="support")
    (found,) = evaluate_checkpoints([trained(in_colour, tmp_path / "run")], request).values()
    assert set(found[0].class_names) <= set(glyphs.load().test.class_names)
    assert "images are converted to RGB, as in training" in capsys.readouterr().out

    # A folder's images are made grey for a run whose data set is grey.
    of_grey = of_omniglot(paths[0], tmp_path / "grey.pt", mirrors=False)
    request = replace(REQUEST, data="Folder", root=str(root_of(config)), size=16, norm="support")
    (found,) = evaluate_checkpoints([of_grey], request).values()
    (expected,) = evaluate_checkpoints(paths[:1], replace(REQUEST, norm="support")).values()
    assert torch.equal(found[0].values, expected[0].values)
    capsys.readouterr()
    coloured = in_colour.data.load().test
    assert as_trained(of_grey, config, coloured, print).images.shape[1:] == (1, 16, 16)
    assert f"{of_grey}: images are converted to grey, as in training" in capsys.readouterr().out


def test_all_classes_of_another_folder(config: Config, paths: list[Path], tmp_path: Path) -> None:
    """Three classes make a task, where its third of them would make none."""
    other = make_folder(tmp_path / "other", classes=3)
    request = replace(REQUEST, data="Folder", root=str(other), norm="support")
    with pytest.raises(DataError, match="this split has 1"):
        evaluate_checkpoints(paths[:1], request)
    (found,) = evaluate_checkpoints(paths[:1], replace(request, split="all")).values()
    assert sorted(found[0].class_names) == ["class00", "class01", "class02"]

    own = replace(request, split="all", root=str(root_of(config)))
    for request in (own, replace(own, root=""), replace(own, data="", root="")):
        with pytest.raises(ConfigurationError, match="was trained on classes of this data set"):
            evaluate_checkpoints(paths[:1], request)
    requested(config, replace(own, data="Glyphs"))  # Not refused: they are others.


def test_the_folder_of_the_run_is_no_other_data_set(config: Config, tmp_path: Path) -> None:
    """Named as one it is divided as in training, and not anew, into classes it was trained on."""
    root = root_of(config)
    run = replace(config, data=config.data.changed(csv=str(tmp_path / "split.csv")))
    for same in (root, root / ".." / root.name):
        for given in ("", str(same)):
            assert other_data(run.data, replace(REQUEST, data="Folder", root=given)) is None
            same_data = run.data.changed(root=given or str(root))
            assert requested(run, replace(REQUEST, data="Folder", root=given)).data == same_data
    other = replace(REQUEST, data="Folder", root=str(tmp_path))
    assert other_data(run.data, other) == Folder(str(tmp_path), size=16)
    assert requested(run, other).data == Folder(str(tmp_path), size=16)


def test_classes_that_a_run_was_trained_on_are_left_out(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """CIFAR-FS and FC100 divide the same classes."""
    cifarfs = {Path("run"): replace(config, data=CIFARFS())}
    parts = []
    for part in SPLITS:
        names = class_list("fc100", part)
        images = torch.zeros(len(names), 3, 2, 2, dtype=torch.uint8)
        parts.append(ClassDataset.from_counts(images, dict.fromkeys(names, 1)))
    splits = Splits(*parts)
    training = class_list("cifarfs", "train")
    for split, dataset in (("test", splits.test), ("all", splits.joined())):
        request = replace(REQUEST, data="FC100", split=split)  # type: ignore[arg-type]
        expected = [name for name in dataset.class_names if name not in training]
        assert 0 < len(expected) < len(dataset.class_names)
        assert list(unseen(cifarfs, request, splits, print).class_names) == expected
        assert "are left out" in capsys.readouterr().out
    # tieredImageNet's published files name classes by words.
    mini = {Path("run"): replace(config, data=MiniImageNet())}
    request = replace(REQUEST, data="TieredImageNet")
    assert unseen(mini, request, splits, print) is splits.test
    assert "which of them are training classes is not known" in capsys.readouterr().out
    # Nothing is left out of data that do not overlap, nor of a run's own.
    for run_config in (config, replace(config, data=FC100())):
        request = replace(REQUEST, data="FC100")
        assert unseen({Path("run"): run_config}, request, splits, print) is splits.test
        assert capsys.readouterr().out == ""
    seen = splits.test.class_names.index(next(n for n in splits.test.class_names if n in training))
    only = Splits(splits.train, splits.validation, splits.test.select([seen]))
    with pytest.raises(ConfigurationError, match="1 of the 1 classes are training classes"):
        unseen(cifarfs, replace(REQUEST, data="FC100"), only, print)


def of_omniglot(path: Path, place: Path, **settings: bool) -> Path:
    """The checkpoint, as if it had been trained on Omniglot."""
    loaded = load(path)
    size = loaded.config["data"]["size"]
    data: Any = {"name": "Omniglot", "size": size, **settings}
    save(replace(loaded, config={**loaded.config, "data": data}), place)
    return place


@pytest.mark.parametrize("data", ["", "Glyphs"])
def test_mirror_images_in_training_leave_the_classes_of_tests_alone(
    data: Any, config: Config, paths: list[Path], tmp_path: Path
) -> None:
    """They do not stand in the way of a comparison on the same tasks, nor of another data set."""
    several = [
        of_omniglot(paths[0], tmp_path / f"{mirrors}.pt", mirrors=mirrors)
        for mirrors in (True, False)
    ]
    request = replace(REQUEST, data=data, tasks=3, norm="support")
    splits = None if data else config.data.load()
    first, second = evaluate_checkpoints(several, request, splits).values()
    assert torch.equal(first[0].values, second[0].values)
    if not data:
        with pytest.raises(ConfigurationError, match="mirrors is False and True"):
            evaluate_checkpoints(several, replace(request, split="train"), splits)


def test_views_are_part_of_the_protocol(paths: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    request = replace(REQUEST, views="shifts", norm="running", output=file)
    (evaluations,) = evaluate_checkpoints(paths[:1], request).values()
    (figures,) = json.loads(file.read_text())["checkpoints"].values()
    assert figures[0]["protocol"] == evaluations[0].protocol
    assert evaluations[0].protocol.endswith("4 inner steps, 9 views (shifts)")
    with pytest.raises(ConfigurationError, match="shifts, and the problem is Initialization"):
        evaluate_checkpoints(paths[2:], replace(request, output=None))


def test_the_file_holds_every_figure(paths: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "new" / "figures.json"
    request = replace(REQUEST, output=output)
    ((path, evaluations),) = evaluate_checkpoints(paths[:1], request).items()
    report = json.loads(output.read_text())
    assert report["checkpoints"] == {path: [plain(e) for e in evaluations]}
    assert {"command", "commit", "torch", "device", "cores"} <= report["provenance"].keys()


def plain(evaluation: Evaluation) -> dict[str, Any]:
    by_class = zip(evaluation.class_names, evaluation.class_accuracy.tolist(), strict=True)
    return {
        "norm": evaluation.norm,
        "protocol": evaluation.protocol,
        "metric": evaluation.metric.name,
        "tasks": 7,
        "mean": evaluation.mean,
        "interval_95": evaluation.interval,
        "calibration_error": evaluation.calibration_error,
        "task_accuracy": evaluation.values.tolist(),
        "class_accuracy": dict(by_class),
    }


def test_a_foreign_network_runs_only_where_it_is_allowed(config: Config, tmp_path: Path) -> None:
    of_own = replace(config, encoder=Encoder(own, {"function": "small_runs:make_encoder"}))
    path = trained(of_own, tmp_path / "run")
    with pytest.raises(
        ConfigurationError, match=r"would call 'small_runs:make_encoder'.*allow it \(network "
    ):
        evaluate_checkpoints([path], REQUEST)
    allowed = replace(REQUEST, network="small_runs:make_encoder")
    assert len(evaluate_checkpoints([path], allowed)) == 1


def test_one_task_has_no_interval(paths: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    evaluate_checkpoints(paths[:1], replace(REQUEST, tasks=1, output=output))
    assert "NaN" not in output.read_text()
    (evaluations,) = json.loads(output.read_text())["checkpoints"].values()
    assert evaluations[0]["interval_95"] is None


def test_a_run_without_settings_cannot_be_rebuilt(tmp_path: Path) -> None:
    run(tmp_path, settings=replace(SETTINGS, steps=1))
    with pytest.raises(CheckpointError, match="saved without a configuration"):
        evaluate_checkpoints([tmp_path / BEST], REQUEST)


def test_comparisons_are_refused_before_anything_is_evaluated(
    config: Config, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(config, episodes=replace(config.episodes, shot=2))
    path = trained(other, tmp_path)
    with pytest.raises(ConfigurationError, match="the tasks are 3-way 2-shot 3 queries"):
        evaluate_checkpoints([paths[0], path], REQUEST)
    assert capsys.readouterr().out == ""
    evaluate_checkpoints([paths[0], path], replace(REQUEST, shot=1))


@pytest.mark.parametrize(
    ("request_", "drawn"),
    [
        (EvaluationRequest(), ""),
        (EvaluationRequest(split="train"), ", train split"),
        (EvaluationRequest(split="validation"), ", validation split"),
        (EvaluationRequest(data="Glyphs", size=16), ", test split of Glyphs"),
        (EvaluationRequest(data="Glyphs", size=16, split="all"), ", all splits of Glyphs"),
    ],
)
def test_the_split_is_printed(
    request_: EvaluationRequest,
    drawn: str,
    paths: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Figures of other classes than the test classes do not look like theirs."""
    request_ = replace(request_, tasks=2, norm="support")
    evaluate_checkpoints(paths[:1], request_)
    assert f"3 queries a class, seed 1000{drawn}, 4 inner steps)" in capsys.readouterr().out


def test_models_of_different_norm_modes(capsys: pytest.CaptureFixture[str]) -> None:
    """Each figure is printed, and the difference in the modes that both have."""

    def found(*norms: NormMode) -> list[Evaluation]:
        values = torch.tensor([0.5, 1.0], dtype=torch.float64)
        return [Evaluation(norm, "tasks", 1, values, (), Counts.none()) for norm in norms]

    a, b = found("support"), found("transductive", "support", "running")
    for results in ({"a.pt": a, "b.pt": b}, {"b.pt": b, "a.pt": a}):
        report(Measured(results, (), {}), None)
        printed = capsys.readouterr().out
        assert printed.count("75.00 ± 49.00 %") == 4
        (at,) = [n for n, line in enumerate(printed.splitlines()) if "same tasks" in line]
        assert "(support, 2 tasks" in printed.splitlines()[at - 1]


def test_a_metric_that_is_nan_is_null_in_json(tmp_path: Path) -> None:
    values = torch.tensor([0.5, torch.nan], dtype=torch.float64)
    error, further = Quantity("mean squared error"), {Quantity("R2"): values}
    evaluation = Evaluation(
        "support", "tasks", 1, values, (), Counts.none(), metric=error, others=further
    )
    report(Measured({"best.pt": [evaluation]}, (), {}), tmp_path / "found.json", progress=False)

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "found.json").read_text()
    (found,) = json.loads(text, parse_constant=refused)["checkpoints"]["best.pt"]
    assert (found["mean"], found["interval_95"]) == (None, None)
    assert found["task_mean_squared_error"] == found["task_R2"] == [0.5, None]


def test_runs_of_different_metrics_are_not_compared(config: Config) -> None:
    """Known from their settings, before anything is trained."""
    loss = replace(config, problem=config.problem.changed(metric=CrossEntropy()))
    runs = {Path("one"): config, Path("two"): loss}
    check_comparable({Path("one"): config, Path("two"): config})
    with pytest.raises(ConfigurationError, match="two measures cross entropy and one accuracy"):
        check_comparable(runs)

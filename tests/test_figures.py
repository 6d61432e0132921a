"""Every figure that the project can make is of one standard: titles, labels, legends, layout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_layout import misplaced
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from fewshot_blo.experiments.table import draw
from fewshot_blo.experiments.tuning.picture import draw_search
from fewshot_blo.experiments.tuning.results import Row
from fewshot_blo.experiments.tuning.space import Axis, Space
from fewshot_blo.records.curves import Curve, Panel, curve_figure, divided
from fewshot_blo.records.figure import COLOURS, colour_bar, new_figure, panels, save_figure
from fewshot_blo.records.figure_check import below_standard
from fewshot_blo.records.quantity import ACCURACY
from fewshot_blo.records.training_curves import draw_curves
from fewshot_blo.studies import pictures
from fewshot_blo.studies.progress import GRADIENTS, draw_progress
from fewshot_blo.tasks import ClassDataset, EpisodicSampler
from fewshot_blo.tasks.picture import episode_picture

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["implicit, conjugate gradients (iMAML)", *(f"method {n}" for n in range(10))]


def training(path: Path) -> None:
    log = []
    for step in range(1, 41):
        record = {"step": step, "loss/outer": 1 / step, "loss/inner": 2 / step}
        record["accuracy/train"] = 1 - 0.7 / step
        if step % 10 == 0:
            record |= {"accuracy/validation": 0.8, "accuracy/validation_interval": 0.05}
        log.append(record)
    draw_curves(log, path)


def compared(path: Path, count: int = 9) -> None:
    rows = []
    for n, name in enumerate(NAMES[:count]):
        values = {"transductive": 90.0 + n, "transductive interval": 1.0, "seconds": 60.0 * n}
        rows.append({"method": name, **values})
    draw(rows, path, ACCURACY)


def searched(path: Path) -> None:
    axes = (
        Axis("strategy.inner.rule.step_size", 0.1, low=1e-3, high=1.0, log=True),
        Axis("strategy.inner.steps", 5, low=1, high=20, whole=True),
        Axis("network.normalisation", "batch", choices=("batch", "layer", "none")),
        Axis("train.momentum", 0.5, low=0.0, high=0.9),
    )
    rows = []
    for n in range(8):
        values = (10 ** -(n % 4), n + 1, ("batch", "layer")[n % 2], n / 9)
        named = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        state, value = ("pruned" if n % 3 == 2 else "complete"), 0.6 + n / 40
        rows.append(Row(n, named, state, value, 0.02, 10, 1.0, ""))
    draw_search(Space({}, axes), ACCURACY, rows, path)


def convergence(path: Path) -> None:
    convergence_of(NAMES, path)


def convergence_of(names: list[str], path: Path) -> None:
    logs = {
        name: [
            {"step": s, "seconds": s / 90, "validation error, retrained, %": 90 / s + n}
            for s in (1, 5, 20)
        ]
        for n, name in enumerate(names)
    }
    draw_progress(
        [{"method": name, GRADIENTS: 3.0 * (name != "method 2")} for name in logs], logs, path
    )


def histograms(path: Path) -> None:
    values = {name: torch.linspace(0, 1, 400) ** (n + 1) for n, name in enumerate(NAMES[1:6])}
    wrong = torch.arange(400) < 100
    groups = {"right label": ~wrong, "wrong label": wrong}
    pictures.histograms("Weights of images", values, groups, "weight of an image", path)


def digits(path: Path, label: str = "") -> None:
    rows = {name: n * torch.rand(10, 28, 28) for n, name in enumerate(NAMES[:2], 1)}
    titles = [str(digit) for digit in range(10)]
    pictures.images("The first distilled image of each digit", rows, titles, path, label=label)


def decays(path: Path) -> None:
    digits(path, "log decay")


def one_decay(path: Path) -> None:
    rows = {name: torch.randn(1, 28, 28) for name in NAMES[:3]}
    title = "Logarithms of the weight decay learned for each pixel"
    pictures.images(title, rows, ["mean over units"], path, label="log decay")


def colours(path: Path) -> None:
    rows = {name: torch.rand(10, 8, 8, 3) for name in ("target", "before", "features-alone")}
    pictures.images("Targets and their poison images", rows, ["as leopard"] * 10, path)


def weights(path: Path) -> None:
    lines = {name: ([1.0, 10, 100], [1e-8, 1e-3, n + 1.0]) for n, name in enumerate(NAMES[:5])}
    pictures.curves("Weights of the sources", lines, "source (number)", "weight", path)


def many_lines(path: Path) -> None:
    lines = {name: ([0.0, 1, 2], [float(n), 2, 3]) for n, name in enumerate(NAMES)}
    scales = {"xscale": "linear", "yscale": "linear"}
    pictures.curves("Learned targets", lines, "place x", "target u(x)", path, **scales)


def episodes(path: Path) -> None:
    images = torch.randint(0, 255, (48, 1, 10, 10)).byte()
    names = tuple(f"Canadian Syllabics/U+147{c}" for c in range(8))
    dataset = ClassDataset(images, torch.arange(8).repeat_interleave(6), names)
    batch = EpisodicSampler(dataset, way=5, shot=1, query=3, tasks=2).batch(0)
    episode_picture(batch, path, class_names=names)


def one_step(path: Path) -> None:
    record = {"step": 1, "loss/outer": 1.0, "accuracy/train": 0.5, "accuracy/validation": 0.6}
    draw_curves([record | {"accuracy/validation_interval": 0.02}], path)


def one_trial(path: Path) -> None:
    axes = (Axis("network.normalisation_of_long_name", "no", choices=("no", "batch")),)
    row = Row(0, {axes[0].name: "no"}, "complete", 0.6, math.nan, 10, 1.0, "")
    draw_search(Space({}, axes), ACCURACY, [row], path)


def none_compared(path: Path) -> None:
    draw(
        [{"method": "a", "transductive": math.nan, "transductive interval": math.nan}],
        path,
        ACCURACY,
    )


def long_histograms(path: Path) -> None:
    values = {
        f"omniglot-5w1s/implicit-conjugate-gradients-{n}_$x$": torch.rand(9) for n in range(5)
    }
    pictures.histograms("Weights", values, {"all": torch.ones(9) > 0}, "weight of an image", path)


def long_rows(path: Path) -> None:
    rows = {
        f"omniglot-5w1s/implicit-conjugate-gradients-{n}_$x$": torch.ones(2, 9, 9) for n in (1, 2)
    }
    pictures.images("Logarithms of decays", rows, ["0", "1"], path, label="log decay")


def long_names(path: Path) -> None:
    convergence_of([f"omniglot-5w1s/implicit-conjugate-gradients-{n}_$x$" for n in range(3)], path)


def short_episodes(path: Path) -> None:
    dataset = ClassDataset(
        torch.zeros(8, 1, 10, 10).byte(), torch.arange(4).repeat_interleave(2), tuple("abcd")
    )
    batch = EpisodicSampler(dataset, way=2, shot=1, query=1, tasks=1).batch(0)
    episode_picture(batch, path, class_names=dataset.class_names)


def costs(path: Path) -> None:
    import bilevel_cost

    kept = json.loads((ROOT / "benchmarks/results/studies/bilevel-cost.json").read_text())
    for axis, rows in kept["axes"].items():
        bilevel_cost.draw(axis, rows, path)


def sinusoids(path: Path) -> None:
    import sinusoid
    from sinusoid_methods import INNER_STEPS, Errors

    means = [3.0 / (1 + step) for step in INNER_STEPS]
    halves = [0.1 / (1 + step) for step in INNER_STEPS]
    names = ("MAML", "first-order MAML", "implicit, prox")
    sinusoid.draw([Errors(name, means, halves, 1, 1.0) for name in names], path)


EVERY: list[Callable[[Path], None]] = [
    training, compared, searched, convergence, histograms, digits, decays, one_decay, colours,
    weights, many_lines, episodes, short_episodes, costs, sinusoids, one_step, one_trial,
    none_compared, long_histograms, long_rows, long_names,
]  # fmt: skip


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, which are not drawn twice."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures: list[Figure] = []

    def kept(figure: Figure, *arguments: Any, **settings: Any) -> None:
        figures.append(figure)
        assert settings["dpi"] == 120

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_every_figure(make: Callable[[Path], None], saved: list[Figure], tmp_path: Path) -> None:
    torch.manual_seed(0)
    make(tmp_path / f"{make.__name__}.png")
    assert saved
    for figure in saved:
        assert below_standard(figure) == []
        figure.set_dpi(120)
        assert misplaced(figure) == []


def test_names_with_a_dollar_stay_whole(saved: list[Figure], tmp_path: Path) -> None:
    for make in (long_histograms, long_rows, long_names):
        make(tmp_path / "names.png")
    drawn = [text for figure in saved for text in figure.findobj(Text) if "$x$" in text.get_text()]
    assert len(drawn) == 5 + 2 + 3
    assert not any(text.get_parse_math() for text in drawn)


def test_a_single_step_is_marked_with_its_interval(saved: list[Figure], tmp_path: Path) -> None:
    one_step(tmp_path / "curves.png")
    loss, metric = saved[0].axes
    for axes, names in (
        (loss, ["query loss (F)"]),
        (metric, ["training tasks", "validation tasks"]),
    ):
        named = [line for line in axes.lines if line.get_label() in names]
        assert [line.get_marker() for line in named] == ["o"] * len(names)
    assert "± 95 % interval" in [c.get_label() for c in metric.containers]
    assert all(float(tick).is_integer() for axes in (loss, metric) for tick in axes.get_xticks())


def test_long_choices_are_slanted(saved: list[Figure], tmp_path: Path) -> None:
    choices = ("batch", "instance normalisation without scale")
    axes = (Axis("normalisation", "batch", choices=choices),)
    row = Row(0, {"normalisation": "batch"}, "complete", 0.6, 0.02, 10, 1.0, "")
    draw_search(Space({}, axes), ACCURACY, [row], tmp_path / "search.png")
    labels = saved[0].axes[1].get_xticklabels()
    assert [label.get_text() for label in labels] == list(choices)
    assert {label.get_rotation() for label in labels} == {30.0}


def test_values_that_are_alike_or_no_numbers_have_a_scale(
    saved: list[Figure], tmp_path: Path
) -> None:
    for values in (torch.ones(2, 9, 9), torch.full((2, 9, 9), math.nan)):
        pictures.images("Decays", {"row": values}, ["0", "1"], tmp_path / "d.png", label="decay")
    scales = [[image.get_clim() for image in figure.findobj(AxesImage)] for figure in saved]
    assert scales[0] == [pytest.approx((0.9, 1.1))] * 2
    assert scales[1] == [(0.0, 1.0)] * 2


def test_no_figure_is_left_out() -> None:
    sources = [
        p for top in ("fewshot_blo", "tasks", "benchmarks") for p in (ROOT / top).rglob("*.py")
    ]
    found = {p.name for p in sources if "save_figure(" in p.read_text(encoding="utf-8")}
    drawn = {"training_curves.py", "table.py", "picture.py", "progress.py", "pictures.py"}
    assert found == {"figure.py", *drawn, "bilevel_cost.py", "sinusoid.py"}
    own = [p.name for p in sources if "figsize" in p.read_text(encoding="utf-8")]
    assert own == ["figure.py"]


@pytest.mark.parametrize(
    ("settings", "count", "missing"),
    [
        ({"xlabel": ""}, 1, "no label of its horizontal axis"),
        ({"ylabel": ""}, 1, "no label of its vertical axis"),
        ({}, 2, "no legend with 'line 0'"),
        ({}, 8, "8 named lines: at most 7 can be told apart"),
    ],
)
def test_what_a_panel_lacks_is_told(
    settings: dict[str, str], count: int, missing: str, tmp_path: Path
) -> None:
    figure = new_figure("Losses", 5, 4)
    (axes,) = panels(figure)
    for n in range(count):
        axes.plot([0, 1], [n, n], label=f"line {n}")
    axes.set(**{"xlabel": "step (count)", "ylabel": "loss", **settings})
    if count == 8:
        axes.legend()
    with pytest.warns(UserWarning, match=f"^losses.png: .*{missing}"):
        save_figure(figure, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 0


def test_what_a_figure_lacks_is_told() -> None:
    assert below_standard(new_figure("", 5, 4)) == ["the figure has no title"]
    figure = new_figure("Panels", 5, 4)
    left, right = panels(figure, 1, 2)
    for axes in (left, right):
        axes.plot([0, 1], [0, 1])
        axes.set(xlabel="step (count)", ylabel="loss")
    left.set_title("Left")
    assert below_standard(figure) == ["a panel has no title"]
    figure = new_figure("Weights", 5, 4)
    (axes,) = panels(figure)
    image = axes.imshow([[0.0, 1.0]])
    axes.set(xticks=[], yticks=[])
    colour_bar(image, axes, "")
    assert below_standard(figure) == ["a colour bar has no label"]


def test_long_titles_are_wrapped() -> None:
    figure = new_figure("one word and another " * 8, 4, 3)
    assert misplaced(figure) == []
    assert figure.get_suptitle().count("\n") >= 3


@pytest.mark.parametrize("count", [0, 1, 7, 8, 14, 15])
def test_more_than_seven_lines_are_divided(count: int) -> None:
    names = [f"line {n}" for n in range(count)]
    groups = divided(names)
    assert [name for group in groups for name in group] == names
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert len(groups) == max(1, math.ceil(count / 7))


def test_the_other_lines_are_grey_and_axes_are_shared() -> None:
    curves = {f"line {n}": Curve([0, 1], [n, n + 1]) for n in range(9)}
    sides = [Panel(curves, label, "loss", title=label) for label in ("steps", "seconds")]
    figure = curve_figure("Losses", sides)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert len(axes.lines) == 9
        own = [line for line in axes.lines if line.get_color() in COLOURS]
        assert len(own) in (4, 5)
        assert len({line.get_color() for line in own}) == len(own)
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "steps", "seconds"]


def test_intervals_are_bands() -> None:
    curve = Curve([0, 1], [2.0, 3.0], [0.5, 1.0])
    figure = curve_figure("Errors", [Panel({"one": curve}, "step (count)", "error")])
    (band,) = figure.axes[0].collections
    box = band.get_datalim(figure.axes[0].transData)
    assert (box.y0, box.y1) == (1.5, 4.0)

"""What is searched: how it is written, what is usual, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.settings import SLOTS, Config, config_from
from fewshot_blo.experiments.tuning.sites import sites_of
from fewshot_blo.experiments.tuning.space import make_space, words_of
from fewshot_blo.experiments.tuning.usual import usual_values
from fewshot_blo.hypergrad import Strategy

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ("penalty", "implicit-neumann", "metaoptnet", "meta-sgd")


def written(*words: str, **settings: Any) -> list[str]:
    return [str(axis) for axis in make_space(config_from(settings), words).axes]


def test_what_is_usually_searched() -> None:
    assert written() == [
        "strategy.inner.steps=1..10",
        "strategy.inner.rule.step_size=0.05..5:log",
        "adaptation.steps=1..20",
        "adaptation.rule.step_size=0.05..5:log",
        "train.learning_rate=0.0001..0.01:log",
    ]
    penalty = {"strategy": {"name": "Penalty", "rho": 30, "lam": 0.0}}
    assert "strategy.rho=3..300:log" in written(**penalty)
    assert not any("lam" in word for word in written(**penalty))  # It is switched off.
    prototypes = {"strategy": {"inner": {"steps": 0}}, "adaptation": {"steps": 0}}
    assert written(**prototypes) == ["train.learning_rate=0.0001..0.01:log"]
    # Nothing is trained: what changes is how a task is solved.
    assert written(train={"steps": 0}, strategy={"inner": {"steps": 1}}) == [
        "adaptation.steps=1..20",
        "adaptation.rule.step_size=0.05..5:log",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_the_usual_space_holds_the_recipe(name: str) -> None:
    config = read_recipe(ROOT / "recipes" / "omniglot-5w1s" / f"{name}.yaml")
    space = make_space(config, ())
    assert space.config({axis.name: axis.value for axis in space.axes}) == config


def test_nothing_is_usual_where_nothing_is_trained_or_adapted() -> None:
    config = config_from({"train": {"steps": 0}, "adaptation": {"steps": 0}})
    with pytest.raises(ConfigurationError, match="none of the settings that are usually"):
        make_space(config, ())


def test_ranges_and_choices() -> None:
    words: tuple[str, ...] = (
        "train.learning_rate=1e-4..1e-2:log",
        "strategy.inner.steps=2..7",
        "train.optimizer",
        "--strategy.inner.rule=SGD,Adam",
        "encoder.hidden=32,64",
        "train.ema",
        "train.clip=0..20",
    )
    with pytest.raises(ConfigurationError, match=r"train\.ema: the recipe has 0.*give one"):
        make_space(Config(), words)
    words = tuple(word for word in words if word != "train.ema")
    assert written(*words) == [
        "train.learning_rate=0.0001..0.01:log",
        "strategy.inner.steps=2..7",
        "train.optimizer=adam,sgd",
        "strategy.inner.rule=SGD,Adam",
        "encoder.hidden=32,64",
        "train.clip=0..20",
    ]
    assert written("train.ema", train={"ema": 0.5}) == ["train.ema=0..0.99"]
    assert len(written("usual", "train.clip=0..20")) == 6
    space = make_space(Config(), words)
    changed = space.config({"strategy.inner.rule": "Adam", "strategy.inner.steps": 3})
    assert repr(changed.strategy).count("Adam") == 1
    assert changed.strategy.inner.steps == 3
    assert changed.adaptation == Config().adaptation


def test_validation_tasks_stay_the_same() -> None:
    space = make_space(Config(), ("episodes.way=2..10", "episodes.shot=1..5"))
    changed = space.config({"episodes.way": 10, "episodes.shot": 5}).episodes
    assert (changed.validation_way, changed.validation_shot) == (5, 1)


def test_a_file_is_the_same_as_words(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    content = {
        "train.learning_rate": "1e-4..1e-2:log",
        "train.optimizer": ["adam", "sgd"],
        "strategy.inner.steps": None,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert written(*words_of(file)) == written(
        "train.learning_rate=1e-4..1e-2:log", "train.optimizer=adam,sgd", "strategy.inner.steps"
    )
    for text, said in [
        ("[1, 2", "cannot be read"),
        ("- a", "is no space"),
        ("train: {clip: 0..1}", "train is a group: write dotted names"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            words_of(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        words_of(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "strategy.rho=1..2",
            r"no setting 'strategy\.rho' in the recipe, whose strategy is Unroll",
        ),
        ("strategy.iner.steps=1..3", r"did you mean strategy\.inner\.steps\?"),
        ("train.learning_rate=-1..1", "-1.0 does not fit; it must be finite and at least 0"),
        ("train.learning_rate=0..inf", "inf does not fit; it must be finite"),
        ("train.ema=0..1", r"1.0 does not fit; .* in \[0, 1\)"),
        ("train.learning_rate=1..0.1", "1.0 is not below 0.1"),
        ("train.learning_rate=0..1:log", "a logarithmic scale has no 0.0"),
        ("train.learning_rate=1e-4..1e-1:lgo", "the scale is 'lgo': it must be log or linear"),
        ("train.learning_rate=a..b", "'a': it must be a number"),
        ("strategy.inner.steps=1.5..3", "1.5.*: it must be a whole number"),
        ("train.learning_rate=1e-2..1e-1:log", r"has 0\.001, .*write train.*=0\.001\.\.0\.1:log"),
        ("strategy.inner.steps=6,7", r"has 5, .*write strategy\.inner\.steps=6,7,5"),
        ("train.optimizer=adam,sdg", r"'sdg': it must be one of adam, sgd \(did you mean sgd\?\)"),
        ("train.optimizer=1..2", r"takes no numbers; write train\.optimizer=adam,sgd"),
        ("train.optimizer=adam", "two or more different choices"),
        ("strategy=Unroll,Penalt", r"'Penalt': .*did you mean Penalty\?"),
        ("strategy", "name the choices, as strategy=Unroll,Implicit"),
        ("problem.start", "the recipe has null.*give it a value in the recipe"),
        ("train.rates", "no range around it"),
        ("train.rates={encoder: 0.1},{encoder: 0.2}", "lists and groups cannot be searched"),
        ("train.seed=0..9", r"cannot be searched: the best of several seeds is luck"),
        ("seed=0..9", "best of several seeds is luck"),
        ("train.norm", "it decides what is measured"),
        ("data.size=28,32", "it decides what is measured"),
        ("device=cpu,cuda", "set it in the recipe"),
        ("", "no setting ''"),
    ],
)
def test_what_is_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        make_space(Config(), [word])
    assert "\n" not in str(caught.value)


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"rule\.step_size are both searched"):
        make_space(Config(), ["strategy.inner.rule=SGD,Adam", "strategy.inner.rule.step_size"])
    with pytest.raises(ConfigurationError, match="searched twice"):
        make_space(Config(), ["train.clip=0..9", "train.clip=0..20"])


@pytest.mark.parametrize("kind", SLOTS[Strategy].choices, ids=lambda kind: kind.__name__)
def test_usual_ranges_lie_within_the_limits(kind: Any) -> None:
    """Those of every setting of every strategy that has a range."""
    sites = sites_of(config_from({"strategy": {"name": kind.__name__}}).plain())
    for site in sites.values():
        try:
            axis = usual_values(site)
        except ConfigurationError:
            continue
        if "low" in axis:
            assert site.limits.has(axis["low"]), (site, axis)
            assert site.limits.has(axis["high"]), (site, axis)
            assert axis["low"] <= site.value <= axis["high"]

"""Models by name and from folders: what they predict, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_dataset, make_folder, make_sampler
from torch.nn import functional as F

from fewshot_blo import CheckpointError, ConfigurationError, PretrainedModel, load_pretrained
from fewshot_blo.commands import main as cli
from fewshot_blo.experiments.recipes import read_recipe, read_settings
from fewshot_blo.experiments.settings import Config
from fewshot_blo.models.card import metadata, plain_card, read_metadata, without_metadata
from fewshot_blo.models.files import CARD, CONFIG, WEIGHTS
from fewshot_blo.records.shipped import recipe_names, released_folder, released_models
from fewshot_blo.tasks import ClassDataset
from fewshot_blo.training import checkpoint as checkpoints

NAME = "omniglot-5w1s-protonet"


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    return load_pretrained(NAME, device="cpu")


def dataset() -> ClassDataset:
    """Pictures of 28 x 28 pixels."""
    small = make_dataset(classes=6, images=6)
    images = F.interpolate(small.images, (28, 28))
    return ClassDataset(images, small.labels, small.class_names)


@pytest.fixture(scope="module")
def task() -> Any:
    return make_sampler(dataset(), way=5, query=4, tasks=1).batch(0)


@pytest.fixture
def folder(model: PretrainedModel, tmp_path: Path) -> Path:
    pytest.importorskip("safetensors", reason="needs safetensors")
    return model.save_pretrained(tmp_path / "model")


def test_a_released_model_labels_images(model: PretrainedModel, task: Any) -> None:
    support, labels, queries = task.support_x[0], task.support_y[0], task.query_x[0]
    found = model.predict(support, labels, queries)
    assert found.shape == (20, 5)
    torch.testing.assert_close(found.sum(1), torch.ones(20))
    assert (found.argmax(1) == task.query_y[0]).float().mean() > 0.7
    # A prediction does not depend on the other queries.
    torch.testing.assert_close(model.predict(support, labels, queries[:1]), found[:1])
    # The order of the support set does not matter, and other numbers of classes are possible.
    two = labels < 2
    assert model.predict(support[two], labels[two], queries).shape == (20, 2)


def test_images_of_other_kinds(model: PretrainedModel, task: Any, tmp_path: Path) -> None:
    from PIL import Image

    pixels = (task.support_x[0] * 255).round().to(torch.uint8)
    pictures = [Image.fromarray(image[0].numpy()) for image in pixels]
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    labels, queries = task.support_y[0].tolist(), task.query_x[0]
    expected = model.predict(pixels, labels, queries)
    torch.testing.assert_close(model.predict(pictures, labels, queries), expected)
    torch.testing.assert_close(model.predict(paths, labels, queries), expected)


def test_it_is_evaluated_as_the_checkpoint_is(model: PretrainedModel) -> None:
    measured = model.evaluate(make_sampler(dataset(), way=5), tasks=4)
    assert (measured.norm, measured.steps) == ("support", 0)


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        ([0, 1, 2, 3], {}, "one for each of the 5"),
        ([0, 1, 2, 3, 5], {}, r"labels are \[0, 1, 2, 3, 5\]: they must be 0 to N-1"),
        ([0.0, 1.0, 2.0, 3.0, 4.0], {}, "must be integers"),
        ([0, 1, 2, 3, 4], {"support": torch.zeros(5, 3, 28, 28)}, r"must be \[B, 1, 28, 28\]"),
        ([0, 1, 2, 3, 4], {"queries": torch.full((1, 1, 28, 28), 255.0)}, "from 255 to 255"),
        ([0, 1, 2, 3, 4], {"queries": []}, "queries has shape"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: PretrainedModel, task: Any, labels: Any, change: Any, message: str
) -> None:
    given = {"support": task.support_x[0], "queries": task.query_x[0], **change}
    with pytest.raises(ConfigurationError, match=message):
        model.predict(given["support"], labels, given["queries"])


def test_a_learned_head_has_its_number_of_classes(task: Any) -> None:
    maml = load_pretrained("omniglot-5w1s-maml", device="cpu")
    with pytest.raises(ConfigurationError, match="2 classes, and omniglot-5w1s-maml has a learned"):
        maml.predict(task.support_x[0][:2], [0, 1], task.query_x[0])


def test_names_that_do_not_exist() -> None:
    with pytest.raises(CheckpointError, match="did you mean omniglot-5w1s-unroll"):
        load_pretrained("omniglot-5w1s-unrol")
    with pytest.raises(CheckpointError, match="there are cifarfs-5w1s-maml, "):
        load_pretrained("xyz")
    with pytest.raises(CheckpointError, match="there is no released model"):
        load_pretrained("../released/omniglot-5w1s-maml")
    with pytest.raises(CheckpointError, match=r"check the path, or name a released model \(omni"):
        checkpoints.load(Path("omniglot-5w1s-unrol"))


def test_a_folder_holds_the_whole_model(model: PretrainedModel, folder: Path, task: Any) -> None:
    assert {path.name for path in folder.iterdir()} == {CARD, CONFIG, WEIGHTS}
    found = PretrainedModel.from_pretrained(folder, device="cpu")
    given = task.support_x[0], task.support_y[0], task.query_x[0]
    torch.testing.assert_close(found.predict(*given), model.predict(*given))
    assert (found.name, found.card) == (NAME, model.card)
    assert found.config == model.config


def test_a_run_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors")
    words = ["--data", "Folder", f"--data.root={make_folder(tmp_path / 'data')}", "--data.size=28"]
    words += ["--train.steps=1", "--train.validation_tasks=2", "--test_tasks=0", "--device=cpu"]
    words += ["--encoder.hidden=4", "--episodes.tasks=2", "--train.chunk=2", "--episodes.way=2"]
    words += ["--episodes.validation_query=2", "--problem.backend=loop", "--data.color=false"]
    assert cli.main(["train", str(tmp_path / "run"), "--config", "glyphs", *words]) == 0
    found = PretrainedModel.from_checkpoint(tmp_path / "run" / "best.pt", device="cpu")
    card = PretrainedModel.from_pretrained(found.save_pretrained(tmp_path / "saved")).card
    assert read_metadata(card)["tags"][-1] == "SharedEncoder-Unroll"
    assert "| backbone | Conv4: hidden 4, " in card
    assert str(tmp_path) not in (tmp_path / "saved" / CONFIG).read_text()


def damaged(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        place, _, own = name.partition("__")
        if own:
            config["settings"][place] = {**config["settings"][place], own: value}
        else:
            config[place] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not the configuration of a model of format 1"),
        ({"settings": []}, r"settings is \[\], which is not possible"),
        ({"shape": [1, 28, True]}, "shape is"),
        ({"shape": [1, 60000, 60000]}, "shape is"),
        ({"outputs": -1}, "outputs is -1"),
        ({"outputs": 60000}, "60000 outputs of a task, more than"),
        ({"encoder__hidden": 4096}, "the network of its settings has"),
        ({"encoder__hidden": 32}, "'blocks.block1.convolution.weight' has shape"),
        ({"encoder__nothing": 0}, "settings that are unknown to this version"),
        ({"problem__name": "Nothing"}, "settings that are unknown to this version"),
    ],
)
def test_settings_that_do_not_fit_the_weights(folder: Path, changes: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        PretrainedModel.from_pretrained(damaged(folder, **changes), device="cpu")
    assert "\n" not in str(caught.value)


def test_files_that_are_damaged(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    whole = (folder / WEIGHTS).read_bytes()
    save_file({**weights, "other": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds 'other'"):
        PretrainedModel.from_pretrained(folder)
    first = next(iter(weights))
    save_file({**weights, first: weights[first] / 0}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="not finite"):
        PretrainedModel.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as a file of weights"):
        PretrainedModel.from_pretrained(folder)
    (folder / CONFIG).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="damaged or not JSON"):
        PretrainedModel.from_pretrained(folder)
    (folder / CONFIG).write_bytes(b" " * (2**20 + 1))
    with pytest.raises(CheckpointError, match=r"config\.json has 1,048,577 bytes"):
        PretrainedModel.from_pretrained(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        PretrainedModel.from_pretrained(folder)


@pytest.mark.parametrize("name", released_models())
def test_cards_say_what_a_model_is(name: str) -> None:
    card = (released_folder(name) / "card.md").read_text(encoding="utf-8")
    config = PretrainedModel.from_checkpoint(name, device="cpu").config
    for row in ("data set", "split", "images", "backbone", "training tasks", "limits", "licence"):
        assert f"\n| {row} | " in card
    assert ("| none: the model was not trained on tasks |" in card) == (config.train.steps == 0)
    found = read_metadata(card)
    bare = read_metadata(metadata(name, config))
    assert {key: found[key] for key in bare} == bare
    for measured in found["model-index"][0]["results"][0]["metrics"]:
        stated = f"{measured['value']:.2f} ± {measured['interval_95']:.2f}"
        assert stated in without_metadata(card)


def test_a_card_without_metadata() -> None:
    assert read_metadata("# a title") == read_metadata("---\n: [\n---\n") == {}
    assert without_metadata(plain_card("mine", Config())).startswith("# mine\n")


def test_the_command_lists_models_and_prints_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in released_models())
    assert "98.65 ± 0.17 (support)" in listed
    assert cli.main(["models", NAME]) == 0
    assert capsys.readouterr().out == (released_folder(NAME) / "card.md").read_text()
    assert cli.main(["models", "omniglot-5w1s-proto"]) == 1
    assert f"did you mean {NAME}" in capsys.readouterr().err


def test_the_command_lists_recipes_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    assert "omniglot-5w1s/maml  " in capsys.readouterr().out
    assert cli.main(["recipes", "omniglot-5w1s/maml"]) == 0
    assert capsys.readouterr().out.startswith("# MAML: second-order unrolling")
    assert cli.main(["recipes", "glyfs"]) == 1
    assert "recipes of the package with such names: glyphs" in capsys.readouterr().err


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path("glyphs")).plain() == Config().plain()
    by_name = read_settings(Path("omniglot-5w1s/maml"))
    assert by_name == read_settings(Path("recipes/omniglot-5w1s/maml.yaml"))
    with pytest.raises(ConfigurationError, match="with such names: omniglot-5w1s/maml"):
        read_settings(Path("omniglot-5w1s/mamel"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(Path("../recipes/glyphs"))
    # A file of the same name comes first.
    Path("glyphs").write_text("seed: 7\n")
    assert read_settings(Path("glyphs")) == {"seed": 7}
    assert {"glyphs", "studies/cleaning-50"} <= {*recipe_names()}


def test_released_names_stand_for_checkpoints() -> None:
    expected = checkpoints.load(released_folder(NAME) / "best.pt")
    assert checkpoints.load(Path(NAME)).step == expected.step

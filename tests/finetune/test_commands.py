"""The commands finetune and predict, and the classifier between them."""

from __future__ import annotations

import csv
import json
import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import NAMES, picture
from small_reports import Page

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.finetune import (
    Classifier,
    LabelledImages,
    Source,
    fit,
    load_classifier,
    read_labelled,
    save_classifier,
)
from fewshot_blo.finetune.album import Album
from fewshot_blo.finetune.candidates import BALANCED, Candidate
from fewshot_blo.kernel import SGD, Adam, InnerSteps

Fit = Callable[[Candidate, LabelledImages, float], Classifier]

PROTOTYPES = Candidate("prototypes", head="cosine")
HEAD = Candidate("head", inner=InnerSteps(20, SGD(2.0)))
RIDGE = Candidate("ridge", head="ridge")
TAIL = Candidate("tail", adapts="last_blocks", inner=InnerSteps(5, Adam(1e-3)))
CROPS = Candidate("crops", views="crops")
LOW = Candidate("low rank", adapts="low_rank", rank=1, inner=InnerSteps(5, Adam(1e-3)))


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> LabelledImages:
    return read_labelled(make_folder(5, 4, 5), 16)


@pytest.mark.parametrize("candidate", [BALANCED, PROTOTYPES, HEAD, RIDGE, TAIL, LOW, CROPS])
def test_one_file_holds_everything(
    candidate: Candidate,
    data: LabelledImages,
    fit_one: Fit,
    small_networks: str,
    tmp_path: Path,
) -> None:
    classifier = fit_one(candidate, data, 0.5)
    before = classifier.predict(data.images)
    save_classifier(classifier, tmp_path / "c.pt")
    loaded = load_classifier(tmp_path / "c.pt", own=small_networks)
    for name, p in classifier.params.items():
        assert torch.equal(p, loaded.params[name])
    assert torch.equal(classifier.features, loaded.features)
    assert repr(loaded) == repr(classifier)
    # Kernels of a processor choose by the place of their operands in memory: rounding differs.
    after = loaded.predict(data.images)
    torch.testing.assert_close(before.probabilities, after.probabilities)
    assert torch.equal(before.known, after.known)
    torch.testing.assert_close(before.probabilities.sum(1), torch.ones(14))
    assert (before.probabilities.argmax(1) == data.labels).double().mean() > 0.9


@pytest.mark.parametrize("candidate", [BALANCED, PROTOTYPES, HEAD, RIDGE, TAIL, LOW])
def test_a_new_class_leaves_the_others_as_they_are(
    candidate: Candidate, make_folder: Callable[..., Path], fit_one: Fit
) -> None:
    data = read_labelled(make_folder(5, 5), 16)
    classifier = fit_one(candidate, data, 1.0)
    old = classifier.logits(classifier.features)
    pixels = [np.asarray(picture(2, number).resize((16, 16))) for number in range(6)]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    classifier.add_class("blue", images[:3])
    assert classifier.class_names[-1] == "blue"
    torch.testing.assert_close(classifier.logits(classifier.features)[: len(old), :2], old)
    expected = classifier.logits(classifier.features[-3:]).argmax(1)
    assert (expected == 2).all()
    assert (classifier.predict(images[3:]).probabilities.argmax(1) == 2).all()
    assert (classifier.predict(data.images).probabilities.argmax(1) == data.labels).all()
    with pytest.raises(ConfigurationError, match="class 'blue' exists already"):
        classifier.add_class("blue", images[:1])


def test_fit_tries_the_candidates_and_says_so(
    data: LabelledImages, small_networks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(small_networks)
    classifier, selection = fit(data, source.load(), source, adapts="head")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(selection.held_out)
    assert all("% of held-out images correct, classes counting alike" in line for line in said)
    assert all(re.search(r", \d+\.\d s$", line) for line in said)
    assert classifier.candidate == selection.held_out[selection.chosen].candidate
    assert classifier.temperature > 0
    name = classifier.candidate.name
    assert repr(classifier).splitlines()[0] == (
        f"Classifier({len(data.class_names)} classes: {', '.join(data.class_names)}"
    )
    assert f"{small_networks}, fine-tuned by '{name}' on {len(data.labels)} images [3, 16, 16]" in (
        repr(classifier)
    )
    assert repr(selection).startswith(f"Selection('{name}' of {len(said)} candidates, accuracy to ")
    assert repr(selection.held_out[0]) == f"HeldOut({said[0].rpartition(', ')[0]})"


def test_one_image_a_class(make_folder: Callable[..., Path], small_networks: str) -> None:
    data = read_labelled(make_folder(1, 1, 1), 16)
    source = Source(small_networks)
    classifier, selection = fit(data, source.load(), source, progress=False)
    assert selection.accuracy is None
    predictions = classifier.predict(data.images)
    assert (predictions.probabilities.argmax(1) == data.labels).all()
    assert predictions.known.all()


def test_from_a_folder_to_labels(
    make_folder: Callable[..., Path],
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, output = make_folder(5, 5, 5), tmp_path / "out"
    words = ["finetune", str(root), f"--backbone={small_networks}", f"--output={output}"]
    assert cli.main([*words, "--adapts=head"]) == 0
    printed = capsys.readouterr().out
    assert "15 images of 3 classes (blue & <b> 5, groß 緑 5, red 5)" in printed
    assert "accuracy to expect on new images" in printed

    page = Page((output / "report.html").read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["3 classes from 15 images"]
    assert [row[:2] for row in page.cells["classes"][1:]] == [
        [name, "5"] for name in ("blue & <b>", "groß 緑", "red")
    ]
    facts = [shlex.split(fact) for fact in page.texts["dd"] if fact.startswith("fewshot-blo fine")]
    options = [f"--backbone={small_networks}", "--adapts=head", f"--output={output}"]
    assert facts == [["fewshot-blo", "finetune", str(root), *options]]

    (tmp_path / "new").mkdir()
    for colour in range(3):
        picture(colour, 50).save(tmp_path / "new" / f"{colour}.png")
    (tmp_path / "new" / "bad.png").write_text("no image")
    table = tmp_path / "labels.csv"
    own = f"--own={small_networks}"
    words = ["predict", str(output / "classifier.pt"), str(tmp_path / "new"), own]
    assert cli.main([*words, f"--output={table}"]) == 1
    printed = capsys.readouterr().out
    assert "bad.png cannot be decoded" in printed
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if not row["error"]]
    assert [max(NAMES, key=lambda name: float(row[f"p:{name}"])) for row in rows] == list(NAMES)
    assert {row["label"] for row in rows} <= {*NAMES, "none of these"}
    assert float(rows[0]["p:red"]) == pytest.approx(float(rows[0]["probability"]))
    (tmp_path / "new" / "bad.png").unlink()
    assert cli.main([*words, f"--output={table.with_suffix('.json')}"]) == 0
    records = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1)

    white = tmp_path / "white"
    white.mkdir()
    for number in range(3):
        picture(number, number).convert("L").save(white / f"{number}.png")
    assert cli.main(["predict", str(output / "classifier.pt"), f"--add_class={white}", own]) == 0
    assert cli.main(["predict", str(output / "classifier.pt"), str(white)]) == 1
    assert "would call the function small_networks:network" in capsys.readouterr().err
    assert (
        load_classifier(output / "classifier-2.pt", own=small_networks).class_names[-1] == "white"
    )
    assert len(load_classifier(output / "classifier.pt", own=small_networks).class_names) == 3


@pytest.mark.parametrize(
    ("words", "match", "code"),
    [
        (["predict", "nowhere.pt", "x.png"], "there is no classifier nowhere.pt", 1),
        (
            ["predict", "nowhere.pt", "x.png", "--output=x.txt"],
            "must end in .csv, .tsv, .json or .jsonl",
            2,
        ),
        (["predict", "nowhere.pt"], "there are no images to label", 2),
        (["predict", "c.pt", "--add_class=x", "--output=x.csv"], "there are no images", 2),
        (["predict"], "there is no classifier: name a file that finetune wrote", 2),
        (["finetune"], "name the folder of them", 2),
        (["export", "c.pt"], "name a classifier, and the file to write", 2),
        (["finetune", "nowhere", "--backbone=small_networks:network"], "is not a folder", 1),
        (
            ["finetune", "FOLDER", "--backbone=small_networks:unsized"],
            "has no default image size",
            1,
        ),
        (["finetune", "FOLDER", "--backbone=nothing"], "use torchvision:NAME", 1),
        (["finetune", "FOLDER", "--pattern=x"], "it must have {label} once", 1),
    ],
)
def test_bad_requests(
    words: list[str],
    match: str,
    code: int,
    make_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(make_folder(1, 1))
    assert cli.main([root if word == "FOLDER" else word for word in words]) == code
    assert match in capsys.readouterr().err


def test_files_of_the_first_format_load_without_detection(
    data: LabelledImages, fit_one: Fit, small_networks: str, tmp_path: Path
) -> None:
    classifier = fit_one(PROTOTYPES, data, 0.5)
    save_classifier(classifier, tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt")
    assert content["format"] == 3
    del content["known"]
    content.update(format=1, temperature=content.pop("scale")["temperature"])
    torch.save(content, tmp_path / "old.pt")
    old = load_classifier(tmp_path / "old.pt", own=small_networks)
    assert not old.known.detects
    expected = classifier.predict(data.images).probabilities
    torch.testing.assert_close(old.predict(data.images).probabilities, expected)


def test_files_that_are_no_classifiers(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a classifier of format 1 to 3"):
        load_classifier(tmp_path / "other.pt")
    torch.save({"format": 1, "source": {"name": "timm:resnet18"}}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"not a complete classifier \('preprocessing'\)"):
        load_classifier(tmp_path / "part.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(CheckpointError, match="cannot be read as a classifier"):
        load_classifier(tmp_path / "text.pt")


def test_folders_of_all_commands_are_walked_alike(
    make_folder: Callable[..., Path],
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, output, own = make_folder(3, 3), tmp_path / "out", f"--own={small_networks}"
    said = "2 entries passed over: 1 .txt, 1 hidden"
    for folder in (root / "red", tmp_path / "new" / "white"):
        folder.mkdir(parents=True, exist_ok=True)
        for junk in ("._x.png", "Thumbs.db", "notes.txt", ".secret.png"):
            (folder / junk).touch()
        (folder / "named.png").mkdir()
        picture(0, 70).save(folder / "named.png" / "inside.jfif", "JPEG")
        (folder / ".ipynb_checkpoints").mkdir()
        picture(0, 71).save(folder / ".ipynb_checkpoints" / "x.png")
        (tmp_path / "blobs").mkdir(exist_ok=True)
        picture(0, 72).save(tmp_path / "blobs" / "0a1b", "PNG")
        (folder / "linked.png").symlink_to(tmp_path / "blobs" / "0a1b")
    words = ["finetune", str(root), f"--backbone={small_networks}", f"--output={output}"]
    assert cli.main([*words, "--adapts=head"]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "8 images of 2 classes (groß 緑 3, red 5)" in printed
    classifier = str(output / "classifier.pt")
    assert cli.main(["predict", classifier, str(tmp_path / "new"), own]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == said
    assert lines[1] == f"1 link out of {tmp_path / 'new'} followed"
    assert len(lines) == 4
    assert cli.main(["predict", classifier, f"--add_class={tmp_path / 'new' / 'white'}", own]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "class 'white' learned from 2 images" in printed
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").touch()
    assert cli.main(["predict", classifier, str(tmp_path / "none"), own]) == 1
    assert "holds no images (1 entry passed over: 1 .txt)" in capsys.readouterr().err
    for number in range(3):
        picture(2, number).save(tmp_path / "blobs" / f"{number}.png")
    for name, folder in (("a", root / "red"), ("b", root / "groß 緑"), ("c", tmp_path / "blobs")):
        (tmp_path / "links" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "links" / name).symlink_to(folder)
    assert cli.main(["data", "--data=Folder", f"--data.root={tmp_path / 'links'}"]) == 0
    assert said in capsys.readouterr().out


def test_a_second_classifier_leaves_the_first_one(
    make_folder: Callable[..., Path],
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "my results"
    words = ["finetune", str(make_folder(2, 2)), f"--backbone={small_networks}", "--adapts=head"]
    words += [f"--output={output}", "--views=one"]
    assert cli.main(words) == 0
    assert "unchanged" not in capsys.readouterr().out
    first = {file.name: file.read_bytes() for file in output.iterdir()}
    assert cli.main([*words, "--thumbnails=false"]) == 0
    said = capsys.readouterr().out
    new = output / "classifier-2.pt"
    assert f"{new} and {output / 'report-2.html'} written after" in said
    assert "; what was in this folder is unchanged" in said
    assert f"next: fewshot-blo predict '{new}' IMAGES" in said
    assert load_classifier(new, own=small_networks).album == Album()
    assert {name: (output / name).read_bytes() for name in first} == first
    assert str(new) in (output / "report-2.html").read_text(encoding="utf-8")


def test_where_nothing_can_be_written_is_said_first(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    words = ["finetune", str(make_folder(2, 2)), "--backbone=nothing"]
    assert cli.main([*words, f"--output={tmp_path / 'file' / 'out'}"]) == 1
    said = capsys.readouterr().err
    assert "cannot write into" in said
    assert "choose another folder" in said


def test_a_new_class_has_the_name_of_its_folder(
    make_folder: Callable[..., Path],
    small_networks: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, new = tmp_path / "out", tmp_path / "0a1b"
    words = ["finetune", str(make_folder(2, 2)), f"--backbone={small_networks}", "--adapts=head"]
    assert cli.main([*words, f"--output={output}", "--views=one"]) == 0
    new.mkdir()
    picture(2, 0).save(new / "0.png")
    decomposed = unicodedata.normalize("NFD", "Käfer")
    (tmp_path / decomposed).symlink_to(new)
    start = ["predict", str(output / "classifier.pt"), f"--own={small_networks}"]
    capsys.readouterr()
    assert cli.main([*start, f"--add_class={tmp_path / decomposed}"]) == 0
    assert "class 'Käfer' learned from 1 image" in capsys.readouterr().out
    monkeypatch.chdir(new)
    assert cli.main([*start, "--add_class=."]) == 0
    assert "class '0a1b' learned from 1 image" in capsys.readouterr().out
    for wrong in ("0.png", "nowhere"):
        assert cli.main([*start, f"--add_class={wrong}"]) == 1
        assert f"{wrong} is no folder: put the images of the new" in capsys.readouterr().err


def test_many_images_that_are_left_out_are_counted(
    make_folder: Callable[..., Path], small_networks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(2, 2)
    for number in range(23):
        picture(0, 0).save(root / "red" / f"copy {number}.png")
    words = ["finetune", str(root), f"--backbone={small_networks}", "--adapts=head"]
    assert cli.main([*words, f"--output={root.parent / 'out'}", "--views=one"]) == 0
    said = capsys.readouterr().out
    assert said.count("is the same image as") == 20
    assert "3 more images are left out for reasons like these" in said


def test_tables_and_names_of_files(
    small_networks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour, number in ((c, n) for c in range(2) for n in range(3)):
        picture(colour, number).save(tmp_path / f"{'rg'[colour]}_{number}.png")
    rest = [f"--backbone={small_networks}", f"--output={tmp_path / 'out'}", "--adapts=head"]
    assert cli.main(["finetune", str(tmp_path), "--pattern={label}_{number}", *rest]) == 0
    assert "6 images of 2 classes (g 3, r 3)" in capsys.readouterr().out
    rows = "".join(f"{'rg'[c]}_{n};{'rg'[c]}ot\n" for c in range(2) for n in range(3))
    (tmp_path / "labels.csv").write_text("Bild;x\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text("File Name;Class\n" + rows, encoding="utf-16")
    for data in (tmp_path, tmp_path / "table.csv"):
        assert cli.main(["finetune", str(data), *rest]) == 0
        assert "6 images of 2 classes (got 3, rot 3)" in capsys.readouterr().out

"""What predict writes and prints, for classes of any name."""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from small_images import picture

from fewshot_blo.commands import main as cli
from fewshot_blo.commands import predict as command
from fewshot_blo.finetune import Classifier, labelling, load_classifier, save_classifier
from fewshot_blo.finetune.labelling import Label, label_files, written
from fewshot_blo.finetune.likeness import Known, Scores

NAMES = ("=1+1", "a\nb", "error", "file", "label", "none of these", "p:file", "日本")
FIXED = ["file", "label", "known", "probability", "likeness", "error"]

Command = Callable[..., int]


@pytest.fixture
def classifier_file(small_networks: str, tmp_path: Path) -> Path:
    """A classifier of two images a class, of classes of all these names, which flags nothing."""
    train = tmp_path / "train"
    for number, name in enumerate(NAMES):
        (train / name).mkdir(parents=True)
        for place in range(2):
            picture(number % 3, 10 * number + place).save(train / name / f"{place}.png")
    words = ["finetune", str(train), f"--backbone={small_networks}", "--adapts=head"]
    assert cli.main([*words, f"--output={tmp_path / 'out'}", "--views=one"]) == 0
    file = tmp_path / "out" / "classifier.pt"
    with_threshold(file, small_networks, -1e9)
    return file


@pytest.fixture
def predict(classifier_file: Path, small_networks: str, tmp_path: Path) -> Command:
    (tmp_path / "new").mkdir()
    for number in range(4):
        picture(number % 3, 100 + number).save(tmp_path / "new" / f"{number}.png")
    (tmp_path / "new" / "bad.png").write_text("no image")

    def run(*words: str) -> int:
        start = ["predict", str(classifier_file), str(tmp_path / "new"), f"--own={small_networks}"]
        return cli.main([*start, *words])

    return run


def table(path: Path) -> list[dict[str, str]]:
    text = io.StringIO(path.read_bytes().decode("utf-8"), newline="")
    return list(csv.DictReader(text))


def with_threshold(file: Path, own: str, limit: float) -> Classifier:
    """The classifier in a file, which flags images with less evidence than a limit."""
    classifier = load_classifier(file, own=own)
    evidence = Scores(torch.full((40,), limit), torch.full((40,), 1 / 40).double(), 40)
    classifier.known = Known(evidence, classifier.known.truth, found=1.0)
    save_classifier(classifier, file)
    return classifier


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("CSV", ","), ("tsv", "\t")])
def test_tables_have_the_same_columns_whatever_classes_are_called(
    ending: str, separator: str, predict: Command, tmp_path: Path
) -> None:
    output = tmp_path / "made" / "for it" / f"x.{ending}"
    assert predict(f"--output={output}") == 1
    with output.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file, delimiter=separator)
    assert head == [*FIXED, *(f"p:{name}" for name in NAMES)]
    assert [row[0] for row in rows] == [
        str(tmp_path / "new" / f"{name}.png") for name in ("0", "1", "2", "3", "bad")
    ]
    *good, bad = (dict(zip(head, row, strict=True)) for row in rows)
    assert [value for name, value in bad.items() if name not in ("file", "error")] == [""] * 12
    assert "cannot be decoded" in bad["error"]
    for row in good:
        probabilities = {name: float(row[f"p:{name}"]) for name in NAMES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        most_likely = max(probabilities, key=probabilities.__getitem__)
        assert row["label"] == ("'=1+1" if most_likely == "=1+1" else most_likely)
        assert float(row["probability"]) == max(probabilities.values())
        assert (row["known"], row["error"]) == ("true", "")


def test_rejection_is_told_from_a_class_of_its_name(
    predict: Command,
    classifier_file: Path,
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classifier = load_classifier(classifier_file, own=small_networks)
    classifier.params = {n: p.clone() for n, p in classifier.params.items()}
    classifier.params["head.bias"][0, NAMES.index("none of these")] += 100
    save_classifier(classifier, classifier_file)
    found = []
    for limit in (-1e9, 1e9):
        with_threshold(classifier_file, small_networks, limit)
        capsys.readouterr()
        assert predict(f"--output={tmp_path / 'x.json'}") == 1
        first = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))[0]
        assert predict(f"--output={tmp_path / 'x.csv'}") == 1
        row = table(tmp_path / "x.csv")[0]
        assert (row["label"], row["known"]) == (first["label"], str(first["known"]).lower())
        line = capsys.readouterr().out.splitlines()[0].removeprefix(str(tmp_path / "new" / "0.png"))
        found.append((first["label"], first["known"], line))
    assert found == [
        ("none of these", True, ": the class 'none of these' 100.0 %"),
        (
            "none of these",
            False,
            ": none of these (most likely the class 'none of these', 100.0 %)",
        ),
    ]


def test_json_has_names_as_values_and_as_keys_of_probabilities_alone(
    predict: Command, tmp_path: Path
) -> None:
    assert predict(f"--output={tmp_path / 'x.json'}") == 1
    assert predict(f"--output={tmp_path / 'x.JSONL'}") == 1
    records = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "x.JSONL").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == records
    for record in records[:-1]:
        assert list(record) == [*FIXED[:-1], "probabilities"]
        assert list(record["probabilities"]) == list(NAMES)
        assert record["label"] in NAMES
    assert list(records[-1]) == ["file", "error"]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_names_of_files_that_are_no_text(ending: str) -> None:
    content = written([Label("\udce9.png", error="bad")], f".{ending}", ("a",)).decode("utf-8")
    assert "\\udce9.png" in content
    if ending != "csv":
        found = json.loads(content)
        assert (found[0] if ending == "json" else found)["file"] == "\udce9.png"


class Closed(io.TextIOWrapper):
    """An output that its reader has closed."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_the_file_is_there_when_printing_fails(
    predict: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new" / "notes.txt").touch()  # It is passed over with a word.
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert predict(f"--output={tmp_path / 'x.csv'}") == 141
    assert len(table(tmp_path / "x.csv")) == 5
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", narrow)
        assert predict(f"--output={tmp_path / 'y.csv'}", "--coverage=0.01") == 1
    assert (tmp_path / "y.csv").is_file()
    said = narrow.buffer.getvalue().decode("ascii")
    assert len(said.splitlines()) == 6
    assert "\x1b" not in said


def test_an_interrupt_writes_nothing_and_says_so(
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(labelling, "_BLOCK", 2)
    real, calls = Classifier.predict, []

    def stops(self: Classifier, images: torch.Tensor) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(Classifier, "predict", stops)
    output = tmp_path / "deep" / "x.csv"
    assert predict(f"--output={output}") == 130
    err = capsys.readouterr().err
    assert f"2 of 5 images labelled; {output} is not written" in err
    assert "Traceback" not in err
    assert list(output.parent.iterdir()) == []


def test_images_are_labelled_in_blocks(
    classifier_file: Path, small_networks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(classifier_file, own=small_networks)
    files = sorted((tmp_path / "train").rglob("*.png"))
    whole = [label for block in label_files(classifier, files) for label in block]
    monkeypatch.setattr(labelling, "_BLOCK", 5)
    blocks = list(label_files(classifier, files))
    assert [len(block) for block in blocks] == [5, 5, 5, 1]
    parts = [label for block in blocks for label in block]
    assert [label.file for label in parts] == [str(file) for file in files]
    for one, other in zip(whole, parts, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_sets_on_the_command_line(
    predict: Command,
    classifier_file: Path,
    small_networks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert predict("--coverage=0.6", f"--output={tmp_path / 'x.json'}") == 1
    lines = capsys.readouterr().out.splitlines()
    assert predict("--coverage=0.6", f"--output={tmp_path / 'x.csv'}") == 1
    records = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    rows = table(tmp_path / "x.csv")
    truth = load_classifier(classifier_file, own=small_networks).known.truth
    for record, row, line in zip(records[:-1], rows[:-1], lines[:-1], strict=True):
        probabilities = record["probabilities"]
        p = truth.p_values(torch.tensor(list(probabilities.values())))
        expected = {name for name, value in zip(NAMES, p.tolist(), strict=True) if value > 1 - 0.6}
        expected.add(max(probabilities, key=probabilities.__getitem__))
        assert set(record["set"]) == expected
        assert record["set"] == sorted(record["set"], key=lambda name: -probabilities[name])
        assert json.loads(row["set"]) == record["set"]
        assert line.endswith("; 60 % set: " + ", ".join(record["set"]).replace("\n", "\\n"))
    assert predict("--coverage=0.99") == 1
    said = capsys.readouterr().out
    assert (
        "every set holds all classes: 16 held-out images give sets of a coverage up to 0.941"
        in (said)
    )


def test_sets_without_held_out_images(
    predict: Command,
    classifier_file: Path,
    small_networks: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for wrong in ("0", "1", "-0.5"):
        assert predict(f"--coverage={wrong}") == 2
        assert "it must be in (0, 1)" in capsys.readouterr().err
    classifier = load_classifier(classifier_file, own=small_networks)
    classifier.known = Known()
    save_classifier(classifier, classifier_file)
    assert predict("--coverage=0.9") == 1
    assert "sets need held-out images, and the classifier has none" in capsys.readouterr().err


def test_where_no_file_can_be_written(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(f"--output={tmp_path}") == 2
    assert f"output is {tmp_path}, a folder: name a file in it whose name ends in .csv, .tsv" in (
        capsys.readouterr().err
    )
    assert predict(f"--output={tmp_path / 'new' / '0.png' / 'x.csv'}") == 1
    out, err = capsys.readouterr()
    assert f"cannot write to the folder {tmp_path / 'new' / '0.png'} (File exists): choose" in err
    assert "labelled" not in err
    assert not out


def test_labels_are_printed_where_the_disk_is_full(
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "atomic_write", full)
    assert predict(f"--output={tmp_path / 'x.csv'}") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    said = "(No space left on device): free disk space or name another file; the labels are those"
    assert f"cannot write {tmp_path / 'x.csv'} {said}" in err


def test_names_are_shown_and_not_obeyed(
    small_networks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("\x1b[31mred", "\u202eder", "b\r\n")
    for number, name in enumerate(names):
        (tmp_path / "train" / name).mkdir(parents=True)
        for place in range(3):
            picture(number, place).save(tmp_path / "train" / name / f"{place}.png")
        picture(number, 0).save(tmp_path / "train" / name / "copy.png")
    output, own = tmp_path / "out", f"--own={small_networks}"
    words = ["finetune", str(tmp_path / "train"), f"--backbone={small_networks}"]
    assert cli.main([*words, f"--output={output}", "--adapts=head"]) == 0
    assert cli.main(["predict", str(output / "classifier.pt"), str(tmp_path / "train"), own]) == 0
    (tmp_path / "train" / names[0] / "bad.png").write_text("no image")
    assert cli.main([*words, f"--output={output}"]) == 1
    out, err = capsys.readouterr()
    for said in (out, err):
        assert not set("\x1b\u202e\r") & set(said)
        assert "\\x1b[31mred" in said
    assert load_classifier(output / "classifier.pt", own=small_networks).class_names == tuple(
        sorted(names)
    )

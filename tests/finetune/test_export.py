"""Files that other programs run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.finetune import (
    Classifier,
    LabelledImages,
    Source,
    fit,
    read_labelled,
    save_classifier,
)
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.export import Deployed, export, to_module, write
from fewshot_blo.finetune.export.agreement import compare
from fewshot_blo.finetune.export.pictures import write_pictures
from fewshot_blo.finetune.export.standalone import Model, decode
from fewshot_blo.finetune.likeness import Known, Scores
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.tasks.reading.formats import BY_CONTENT
from fewshot_blo.tasks.reading.images import open_image, read_image

PROTOTYPES = Candidate("prototypes", head="cosine")
CANDIDATES = [
    Candidate("balanced", head="balanced"),
    PROTOTYPES,
    Candidate("ridge", head="ridge"),
    Candidate("head", inner=InnerSteps(5, SGD(1.0))),
    Candidate("tail", adapts="last_blocks", inner=InnerSteps(3, Adam(1e-2))),
    Candidate("low rank", adapts="low_rank", rank=1, inner=InnerSteps(3, Adam(1e-2))),
    Candidate("crops", views="crops"),
    Candidate("scales", views="scales"),
    Candidate("shifts", views="mirrored_shifts"),
    Candidate("roots", head="ridge", power=0.5),
    Candidate("crops, tail", adapts="last_blocks", views="crops", inner=InnerSteps(3, SGD(1e-2))),
    Candidate("roots, tail", adapts="last_blocks", power=0.5, inner=InnerSteps(3, SGD(1e-2))),
    Candidate("all", adapts="all", inner=InnerSteps(3, Adam(1e-2))),
]
TAIL = CANDIDATES[5]
SUFFIXES = [".onnx", ".pt2"]


@pytest.fixture
def make_classifier(
    make_folder: Callable[..., Path],
    fit_one: Callable[[Candidate, LabelledImages, float], Classifier],
) -> Callable[[Candidate], Classifier]:
    data = read_labelled(make_folder(3, 3, 3), 16)

    def make(candidate: Candidate) -> Classifier:
        classifier = fit_one(candidate, data, 0.7)
        evidence = (classifier.logits(classifier.features) / 0.7).logsumexp(1).repeat(2)
        weights = torch.full((18,), 1 / 18, dtype=torch.float64)
        classifier.known = Known(Scores(evidence.sort().values - 0.01, weights, 18), found=0.5)
        return classifier

    return make


def skip_without(suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_plain_modules(
    candidate: Candidate, make_classifier: Callable[[Candidate], Classifier]
) -> None:
    classifier = make_classifier(candidate)
    images = torch.cat(
        [
            torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8),
            torch.full((1, 3, 16, 16), 255, dtype=torch.uint8),
        ]
    )
    expected = classifier.predict(images)
    found = to_module(classifier)(images / 255)
    torch.testing.assert_close(found["probabilities"], expected.probabilities)
    torch.testing.assert_close(found["likeness"], expected.likeness)
    assert found["known"].tolist() == expected.known.tolist()


def test_the_classifier_is_left_as_it_was(
    make_classifier: Callable[[Candidate], Classifier],
) -> None:
    classifier = make_classifier(TAIL)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    before = classifier.predict(images).probabilities
    for parameter in to_module(classifier, resizing="inside").parameters():
        parameter.zero_()
    assert torch.equal(classifier.predict(images).probabilities, before)


def test_strangers_are_of_none_of_the_classes(
    make_classifier: Callable[[Candidate], Classifier], make_folder: Callable[..., Path]
) -> None:
    classifier = make_classifier(PROTOTYPES)
    module = to_module(classifier)
    assert module.rejection is not None
    seen = classifier.logits(classifier.features) / 0.7
    likeness, known = module.rejection(torch.cat([seen.amin(0, keepdim=True) - 10, seen]))
    assert not known[0]
    assert known[1:].sum() >= 8
    # The threshold of the specification says the same.
    assert torch.equal(known, likeness >= module.rejection.threshold)


@pytest.mark.slow
def test_without_a_detector(
    make_folder: Callable[..., Path],
    fit_one: Callable[[Candidate, LabelledImages, float], Classifier],
    tmp_path: Path,
) -> None:
    data = read_labelled(make_folder(1, 1, 1), 16)
    agreement = export(fit_one(PROTOTYPES, data, 1.0), tmp_path / "m.pt2")
    assert agreement.other_labels == ()
    content = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert content["rejection"] is None
    assert list(content["outputs"]) == ["probabilities"]
    found = Model(tmp_path / "m.json").predict(tmp_path / "images" / "red" / "0.png")
    assert found["known"]
    assert found["likeness"] is None


@pytest.mark.parametrize("color", [True, False])
def test_the_script_decodes_as_the_classifier_does(color: bool, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    modes = set()
    for path in pictures:
        with Image.open(path) as image:
            modes.add(image.mode)
        expected = np.asarray(open_image(path, color=color))
        found = np.asarray(decode(path, BY_CONTENT, "RGB" if color else "L", 0))
        np.testing.assert_array_equal(found, expected, err_msg=path.name)
    assert modes >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("resizing", ["inside", "outside"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files(
    suffix: str,
    resizing: str,
    small_networks: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    skip_without(suffix)
    classifier = make_classifier(TAIL)
    save_classifier(classifier, tmp_path / "c.pt")
    capfd.readouterr()
    output = tmp_path / "deep" / f"m{suffix}"
    words = ["export", str(tmp_path / "c.pt"), str(output), f"--resizing={resizing}"]
    words += [f"--own={small_networks}", f"--pictures={tmp_path / 'images'}"]
    assert cli.main(words) == 0
    out, err = capfd.readouterr()
    first, second = out.splitlines()
    assert err == ""
    assert first.startswith(f"{output}, ")
    assert first.endswith("written")
    # 26 of its own and 9 training images.
    assert second.startswith("35 of 35 pictures have the classifier's label; the largest")
    names = {f"m{suffix}", "m.json", "m_predict.py"}
    names |= {"preprocessor_config.json"} if resizing == "outside" else set()
    assert {path.name for path in output.parent.iterdir()} == names
    content = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["classes"] == list(classifier.class_names)
    assert content["image"] == [3, 16, 16]
    assert content["temperature"]["value"] == 0.7
    assert content["resizing"]["inside_the_model"] == (resizing == "inside")


@pytest.mark.slow
def test_the_script_needs_nothing_of_this_package(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    skip_without(".onnx")
    classifier = make_classifier(PROTOTYPES)
    export(classifier, tmp_path / "m.onnx")
    picture = tmp_path / "images" / "red" / "0.png"
    program = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'fewshot_blo'} & set(sys.modules)"
    )
    words = [sys.executable, "-I", "-c", program, str(tmp_path / "m_predict.py"), str(picture)]
    found = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=True)
    expected = classifier.predict(
        torch.from_numpy(read_image(picture, size=16, color=True))[None]
    ).probabilities
    assert found.stdout == f"{picture}: red {100 * float(expected.max()):.1f} %\n"


def script(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the script in a folder."""
    found = subprocess.run(
        [sys.executable, str(folder / "m_predict.py"), *words],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={"PATH": "", **environment},
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.slow
def test_the_script_shows_names_and_goes_on_after_a_bad_picture(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    skip_without(".onnx")
    classifier = make_classifier(PROTOTYPES)
    classifier.class_names = ("none of these", "\x1b[2J", "日本")
    export(classifier, tmp_path / "m.onnx")
    (tmp_path / "bad\n.png").write_text("no picture")
    folders = sorted((tmp_path / "images").iterdir())
    words = [str(tmp_path / "bad\n.png"), *(str(folder / "0.png") for folder in folders)]
    status, out, err = script(tmp_path, *words, PYTHONIOENCODING="ascii")
    assert status == 1
    assert "bad\\n.png: cannot be read (cannot identify image file" in err
    assert "Traceback" not in err
    lines = [line.partition(".png: ")[2].rpartition(" ")[0] for line in out.splitlines()]
    assert [line.rpartition(" ")[0] for line in lines] == [
        "the class 'none of these'",
        "\\x1b[2J",
        "\\u65e5\\u672c",
    ]
    status, _, err = script(tmp_path, *words, "--coverage=1")
    assert status == 2
    assert "coverage is 1.0: it must be in (0, 1)" in err
    status, _, err = script(tmp_path, *words, "--coverage=0.5")
    assert "the model has no sets, because no images were held out" in err
    assert script(tmp_path)[0] == 2


@pytest.mark.slow
def test_a_closed_output_ends_the_script_quietly(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    skip_without(".onnx")
    export(make_classifier(PROTOTYPES), tmp_path / "m.onnx")
    picture = str(tmp_path / "images" / "red" / "0.png")
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "m_predict.py"), picture],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.slow
def test_sets_of_the_model_are_those_of_the_classifier(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    classifier = make_classifier(Candidate("ridge", head="ridge"))
    chances = torch.tensor([0.05, 0.2, 0.2, 0.34, 0.34, 0.5, 0.9])
    weights = torch.tensor([1.0, 2, 1, 1, 2, 1, 2]).double() / 10
    classifier.known = Known(truth=Scores(chances, weights, 7))
    export(classifier, tmp_path / "m.pt2")
    model = Model(tmp_path / "m.json")
    sizes = set()
    for path in sorted((tmp_path / "images").glob("*/*.png")):
        for coverage in (0.05, 0.5, 0.7, 0.8, 0.86, 0.9, 0.99):
            found = model.predict(path, coverage)
            probabilities = torch.tensor([found["probabilities"]])
            inside = classifier.known.sets(probabilities, coverage)[0]
            names = classifier.class_names
            assert set(found["set"]) == {n for n, own in zip(names, inside, strict=True) if own}
            assert found["set"][0] == found["most_likely"]
            sizes.add(len(found["set"]))
    assert sizes >= {1, 3}
    assert "set" not in model.predict(path)


@pytest.mark.slow
def test_what_exporters_print_is_not_shown(
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    writer: Any = write._pt2

    def loud(module: Deployed, images: torch.Tensor) -> bytes:
        print("Applied 3 of general pattern rewrite rules.")
        logging.getLogger("torch.onnx").warning("a word")
        found: bytes = writer(module, images)
        return found

    monkeypatch.setattr(write, "_pt2", loud)
    level = logging.root.manager.disable
    export(make_classifier(PROTOTYPES), tmp_path / "m.pt2")
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


@pytest.mark.parametrize("library", ["onnxscript", "onnxruntime"])
def test_onnx_without_its_packages(
    library: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", types.ModuleType("onnxscript"))
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library} is not installed: pip install '\.\[onnx\]' in a checkout of fewshot_blo"
    with pytest.raises(ConfigurationError, match=message):
        export(make_classifier(CANDIDATES[0]), tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_file_that_says_something_else_is_not_written(
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = make_classifier(PROTOTYPES)
    writer: Any = write._pt2

    def wrong(module: Deployed, images: torch.Tensor) -> bytes:
        module.weight *= 2
        found: bytes = writer(module, images)
        return found

    monkeypatch.setattr(write, "_pt2", wrong)
    (tmp_path / "m.pt2").write_bytes(b"an earlier one")
    with pytest.raises(CheckpointError, match=r"probabilities of m.pt2 differ from"):
        export(classifier, tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == b"an earlier one"
    assert not (tmp_path / "m.json").exists()


@pytest.mark.slow
def test_other_labels_are_named(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    classifier = make_classifier(PROTOTYPES)
    export(classifier, tmp_path / "m.pt2")
    file = tmp_path / "m.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["classes"][0] = "another"
    file.write_text(json.dumps(content), encoding="utf-8")
    pictures = sorted((tmp_path / "images").glob("*/*.png"))
    found = compare(classifier, tmp_path / "m_predict.py", file, pictures)
    first = classifier.class_names[0]
    assert len(found.other_labels) == 3
    assert all(line.endswith(f": another, not {first}") for line in found.other_labels)
    assert "6 of 9 pictures have the classifier's label" in repr(found)
    assert found.difference < 1e-5


def test_another_model_s_preprocessor_is_kept(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    classifier = make_classifier(PROTOTYPES)
    export(classifier, tmp_path / "m.pt2", resizing="outside")
    export(classifier, tmp_path / "n.pt2", resizing="outside")  # It is the same.
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is there already, for another model"):
        export(classifier, tmp_path / "m.pt2", resizing="outside")
    assert (tmp_path / "preprocessor_config.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["package.json", "package_predict.py"])
def test_a_file_that_no_export_wrote_is_kept(
    name: str, make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    classifier = make_classifier(PROTOTYPES)
    (tmp_path / name).write_text('{"name": "shop"}')
    with pytest.raises(ConfigurationError, match="is there already, and no export wrote it: choos"):
        export(classifier, tmp_path / "package.pt2")
    assert not (tmp_path / "package.pt2").exists()
    assert (tmp_path / name).read_text() == '{"name": "shop"}'
    (tmp_path / name).unlink()
    export(classifier, tmp_path / "package.pt2")
    export(classifier, tmp_path / "package.pt2")  # Its own files are replaced.


def test_a_folder_that_cannot_be_written_to_is_said_first(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot write to the folder"):
        export(make_classifier(PROTOTYPES), tmp_path / "file" / "m.pt2")


class BranchesOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


def test_a_network_that_cannot_be_traced_is_one_line(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = read_labelled(make_folder(3, 3, 3), 16)
    backbone = Backbone(BranchesOnValues(), Preprocessing(size=16))
    classifier, _ = fit(data, backbone, Source("mine"), adapts="head", views="one", progress=False)
    with pytest.raises(ConfigurationError, match=r"cannot trace the network.*depend on values"):
        export(classifier, tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_features_are_no_pictures(
    make_classifier: Callable[[Candidate], Classifier], tmp_path: Path
) -> None:
    classifier = make_classifier(PROTOTYPES)
    classifier.image = torch.Size([12, 1, 1])
    with pytest.raises(ConfigurationError, match=r"arrays \[12, 1, 1\], not square pictures"):
        export(classifier, tmp_path / "m.pt2")
    with pytest.raises(ConfigurationError, match="cannot be resized"):
        to_module(classifier, resizing="inside")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.txt"], "must end in .onnx or .pt2"),
        (["m.pt2", "--pictures=empty"], "empty holds no images"),
        (["m.pt2", "--pictures=no.png"], "there is no image no.png: check the path"),
    ],
)
def test_wrong_words(
    words: list[str],
    message: str,
    small_networks: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    save_classifier(make_classifier(PROTOTYPES), Path("c.pt"))
    assert cli.main(["export", "c.pt", *words, f"--own={small_networks}"]) == 1
    assert message in capsys.readouterr().err
    assert not Path(words[0]).exists()

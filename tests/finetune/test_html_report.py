"""The HTML report: its figures, and names that would be tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fewshot_blo.finetune import Classifier, LabelledImages, read_labelled
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.plays import Play, questions
from fewshot_blo.finetune.report import write_report
from fewshot_blo.finetune.selection import Selection, select

PROTOTYPES = Candidate("prototypes", head="cosine")
HOSTILE = (
    "<script>alert('class')</script>",
    "\" onerror='alert(1)' \"",
    "</title></svg><img src=x onerror=alert(1)>{{ 7 * 7 }}",
)
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "tr"}
TAGS |= {"th", "td", "figure", "img", "figcaption", "span", "br", "svg", "circle", "ul", "li"}


class Page(HTMLParser):
    """What a browser finds: text by the tag that it is in, and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self._open = ""
        self.feed(text)
        words = {tag: [" ".join(text.split()) for text in own] for tag, own in self.texts.items()}
        self.texts = words

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.texts.setdefault(tag, []).append("")
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> LabelledImages:
    """Two images a class, whose names are markup."""
    plain = read_labelled(make_folder(2, 2, 2), 16)
    files = tuple(f"folder/{name}.png" for name in ("<b>0", "1' x='", '2"', "3&amp;", "4", "5"))
    left_out = ("image <script>bad</script>.png cannot be decoded",)
    return replace(plain, class_names=HOSTILE, files=files, left_out=left_out)


def selection(data: LabelledImages, known: int = 6) -> Selection:
    """The image in row 1 is taken for class 2, and the others are right."""
    logits = torch.nn.functional.one_hot(data.labels, 3) * 3.0
    logits[1] = torch.tensor([0.0, 0.0, 4.0])
    rows = torch.arange(6)
    parts = [Play(rows[rows != row], rows[rows == row]) for row in rows[:known]]
    asked = questions(parts, data.labels, rows)
    return select([HeldOut(Candidate("<i>cosine</i>"), logits[:known], asked, Scale())])


def page(path: Path, classifier: Classifier, data: LabelledImages, chosen: Selection) -> Page:
    write_report(path / "report.html", data, classifier, chosen)
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_names_are_text_and_never_markup(
    data: LabelledImages, fit_one: Callable[..., Classifier], tmp_path: Path
) -> None:
    found = page(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, selection(data))
    assert set(found.texts) == TAGS
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert [text for text in found.texts["th"] if text][-3:] == list(HOSTILE)
    assert "<i>cosine</i>" in found.texts["td"]
    assert found.texts["li"] == list(data.left_out)
    assert {value for _, name, value in found.attributes if name == "alt"} == set(HOSTILE)
    assert f"{HOSTILE[0]}: <b>0.png" in found.texts["title"]
    outside = [value for _, name, value in found.attributes if name in ("src", "href")]
    assert all(value.startswith("data:image/jpeg;base64,") for value in outside)


def test_figures(data: LabelledImages, fit_one: Callable[..., Classifier], tmp_path: Path) -> None:
    chosen = selection(data)
    found = page(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, chosen)
    assert found.texts["h1"] == ["3 classes from 6 images"]
    assert chosen.describe()[1:] in found.texts["p"][0]
    assert "the interval is wide" in found.texts["p"][0]
    cells = found.texts["td"]
    loss = float(chosen.held_out[0].log_loss().mean())
    assert cells[:4] == ["<i>cosine</i>", "5 of 6", "83 %", f"{loss:.2f}"]
    counts = [HOSTILE[0], "1", "", "1", HOSTILE[1], "", "2", "", HOSTILE[2], "", "", "2"]
    assert cells[4:] == counts
    styles = [value for tag, name, value in found.attributes if (tag, name) == ("td", "style")]
    shades = [re.sub(r"\s+", " ", style).removeprefix("background: ") for style in styles]
    right, wrong = "rgba(0, 114, 178, {})", "rgba(213, 94, 0, {})"
    assert shades[:3] == [right.format("0.30"), wrong.format("0.00"), wrong.format("0.30")]
    captions = found.texts["figcaption"]
    sure = float(torch.tensor([0.0, 0.0, 4.0]).softmax(0)[2])
    assert found.texts["span"][0] == f"{HOSTILE[0]}, predicted {HOSTILE[2]}, {100 * sure:.0f} %"
    assert len(captions) == 6
    right_sure = float(torch.tensor([3.0, 0.0, 0.0]).softmax(0)[0])
    assert captions[1].endswith(f", {100 * right_sure:.0f} % confidence")
    assert found.texts["br"][0] == "1' x='.png"


def test_without_held_out_images(
    data: LabelledImages, fit_one: Callable[..., Classifier], tmp_path: Path
) -> None:
    found = page(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, selection(data, known=0))
    assert "not measured" in found.texts["p"][0]
    assert found.texts["h2"] == ["How it was fine-tuned", "Map of the images", "Left out"]
    assert sum(tag == "circle" and name == "cx" for tag, name, _ in found.attributes) == 6 + 3

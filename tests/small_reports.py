"""Reports of random images and answers, and what a reader finds in them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch

from fewshot_blo.finetune import Classifier, LabelledImages
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.plays import plays, questions
from fewshot_blo.finetune.report import Origin, write_report
from fewshot_blo.finetune.selection import Selection

PROTOTYPES = Candidate("prototypes", head="cosine")
HOSTILE = (
    "<script>alert('class')</script>",
    "\" onerror='alert(1)' \"",
    "</title></style></svg><img src=x onerror=alert(1)>{{ 7 * 7 }}",
    "two\nlines\x1b[31m \u202eback",
    "African elephant",
)
SCALE = Scale(0.7, 1.3)
ORIGIN = Origin(
    "it's here/<data>",
    Path("my runs/it's/classifier.pt"),
    ("fewshot-blo", "finetune", "it's here/<data>", "--size=16"),
    "weights & more.pth",
    "fewshot_blo 1, PyTorch 2",
)


VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """A report whose tags close.

    Attributes:
        texts: text of each element, by its tag.
        attributes: tag, name and value of every attribute.
        cells: rows of cells, by the heading's id of the part; a part has one table.
        figures: captions and lists of words, by the same id.
        items: entries of lists, by the same id.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: dict[str, list[list[str]]] = {}
        self.figures: dict[str, list[str]] = {}
        self.items: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self._part = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "h2":
            self._part = dict(attrs).get("id") or ""
        if tag == "tr":
            self.cells.setdefault(self._part, []).append([])
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        last, words = self._open.pop()
        assert last == tag
        text = " ".join("".join(words).split())
        self.texts.setdefault(tag, []).append(text)
        if tag in ("td", "th"):
            self.cells[self._part][-1].append(text)
        for name, found in (("figcaption", self.figures), ("li", self.items)):
            if tag == name:
                found.setdefault(self._part, []).append(text)

    def handle_data(self, data: str) -> None:
        for _, words in self._open:
            words.append(data)

    def values(self, name: str, tag: str = "") -> list[str]:
        """Values of an attribute, of one tag or of all."""
        return [v for t, n, v in self.attributes if n == name and tag in ("", t)]


def images_of(*counts: int, names: tuple[str, ...] = HOSTILE, side: int = 16) -> LabelledImages:
    """Noise; class c has ``counts[c]`` images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shape = (len(labels), 3, side, side)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return LabelledImages(
        pixels,
        labels,
        names[: len(counts)],
        tuple(f"in/<b>{n}' \".png" for n in range(len(labels))),
    )


def answered(data: LabelledImages, seed: int = 1, repeats: int = 2) -> HeldOut:
    """Random answers, of which about half are correct."""
    asked = questions(
        parts := plays(data.labels, data.groups, repeats=repeats), data.labels, data.groups
    )
    assert len(parts) or not len(asked.rows)
    generator = torch.Generator().manual_seed(seed)
    ways = len(data.class_names)
    logits = torch.randn(len(asked.rows), ways, generator=generator)
    logits += 0.8 * torch.nn.functional.one_hot(asked.labels, ways)
    strange = asked.strange.nonzero().flatten()
    logits[strange, asked.absent[strange]] = -torch.inf
    return HeldOut(Candidate(f"<i>way {seed}</i>"), logits, asked, SCALE)


def written(
    folder: Path, classifier: Classifier, data: LabelledImages, chosen: Selection
) -> tuple[Page, str]:
    write_report(folder / "report.html", data, classifier, chosen, ORIGIN)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text

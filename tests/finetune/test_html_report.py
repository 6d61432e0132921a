"""The HTML report: figures against plain loops, names that would be tags, and sizes."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_reports import HOSTILE, ORIGIN, PROTOTYPES, SCALE, answered, images_of, written
from torch import Tensor

from fewshot_blo.finetune import Classifier, LabelledImages
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.promise import measured
from fewshot_blo.finetune.report.answers import Answers, answers_of
from fewshot_blo.finetune.report.feature_map import feature_map, mark
from fewshot_blo.finetune.report.suspects import suspects
from fewshot_blo.finetune.report.thumbnails import Thumbnails
from fewshot_blo.finetune.selection import select
from fewshot_blo.records.terminal import shown

Fit = Callable[[Candidate, LabelledImages, float], Classifier]
TAGS = {"html", "head", "title", "style", "body", "main", "header", "nav", "a", "svg", "h1", "h2"}
TAGS |= {"h3", "p", "b", "i", "small", "div", "span", "section", "bdi", "dl", "dt", "dd", "pre"}
TAGS |= {"code", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "ul", "ol"}
TAGS |= {"li"}


def by_loop(held_out: HeldOut) -> dict[int, list[float]]:
    """Probabilities of each held-out image: a plain loop over the answers."""
    asked, found = held_out.asked, {}
    for image in range(len(held_out.labels)):
        total, number = [0.0] * held_out.answers.shape[1], 0
        for row in range(len(asked.rows)):
            if (
                int(asked.rows[row]) != image
                or int(asked.sizes[row])
                or int(asked.absent[row]) >= 0
                or bool(asked.half[row])
            ):
                continue
            sizes = asked.kept[row].tolist()
            terms = [size**-0.5 if size else 0.0 for size in sizes]
            mean = sum(terms) / sum(size > 0 for size in sizes)
            for place, (logit, term) in enumerate(
                zip(held_out.answers[row].tolist(), terms, strict=True)
            ):
                centred = term - mean if sizes[place] else 0.0
                total[place] += logit / SCALE.temperature + SCALE.offset * centred
            number += 1
        if number:
            powers = [math.exp(value / number) for value in total]
            found[image] = [power / sum(powers) for power in powers]
    return found


@pytest.fixture
def data() -> LabelledImages:
    """Classes of 1 to 9 images, of which two are nearly the same; some images were left out."""
    plain = images_of(1, 2, 4, 6, 9)
    groups = plain.groups.clone()
    groups[21] = 20
    left_out = ("<script>bad</script>.png cannot be decoded",)
    return replace(plain, groups=groups, left_out=left_out, notes=("3 entries\npassed over",))


def test_figures_of_each_class(data: LabelledImages, fit_one: Fit, tmp_path: Path) -> None:
    best, chosen = answered(data), select([answered(data)])
    page, _ = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, chosen)
    found = by_loop(best)
    assert set(found) == set(range(1, 22))
    names = [shown(name) for name in HOSTILE]
    expected, matrix = [], []
    for number, name in enumerate(names):
        own = [image for image in found if int(data.labels[image]) == number]
        counts = [sum(max(found[i]) == found[i][c] for i in own) for c in range(len(names))]
        matrix.append([name, *(str(count) if count else "" for count in counts)])
        images = [1, 2, 4, 6, 9][number]
        right = f"{counts[number]} of {len(own)} {100 * counts[number] / max(len(own), 1):.0f} %"
        wrong = [0 if c == number else count for c, count in enumerate(counts)]
        mistaken = f"{max(wrong)} × {names[wrong.index(max(wrong))]}" if any(wrong) else ""
        promised = chosen.promise.classes[number].accuracy
        assert promised is not None
        expected.append(
            [
                name,
                str(images),
                str(images - (number == 4)),
                right if own else "never held out",
                f"{100 * promised:.0f} %",
                mistaken,
            ]
        )
    assert page.cells["classes"][1:] == expected
    assert page.cells["confusion"] == [["", *names], *matrix]


def test_wrong_and_doubtful_images(data: LabelledImages, fit_one: Fit, tmp_path: Path) -> None:
    best = answered(data)
    page, _ = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([best]))
    names, labels = [shown(name) for name in HOSTILE], data.labels.tolist()
    wrong, doubtful = [], []
    for image, chances in by_loop(best).items():
        own, others = chances[labels[image]], list(chances)
        others[labels[image]] = -1.0
        other = others.index(max(others))
        file = Path(data.files[image]).name
        word = "predicted" if max(others) > own else "next"
        caption = (
            f"true {names[labels[image]]} {100 * own:.0f} % {word} {names[other]} "
            f"{100 * max(others):.0f} % {file}"
        )
        if max(others) > own:
            wrong.append((own, caption))
        elif own - max(others) < 0.2:
            doubtful.append((own - max(others), caption))
    assert len(wrong) > 3
    assert doubtful
    assert page.figures["wrong"] == [caption for _, caption in sorted(wrong)]
    assert page.figures["doubtful"] == [caption for _, caption in sorted(doubtful)]


def test_headline_candidates_and_origin(data: LabelledImages, fit_one: Fit, tmp_path: Path) -> None:
    chosen = select([answered(data, seed) for seed in (1, 2)])
    page, _ = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, chosen)
    assert page.texts["h1"] == ["5 classes from 22 images"]
    assert chosen.accuracy is not None
    assert page.texts["p"][1].startswith(f"{100 * chosen.accuracy:.1f} % ")
    assert page.texts["p"][2][1:].startswith(chosen.describe()[1:] + ". Guessing would give 20 %.")
    unmeasured = shown(chosen.promise.unmeasured(data.class_names))
    assert page.texts["p"][3][1:] == unmeasured[1:] + "."
    assert page.texts["p"][4].lower() == chosen.known.describe().lower() + "."
    mean = sum(c.accuracy or 0 for c in chosen.promise.classes) / 5
    assert chosen.accuracy == pytest.approx(mean)
    rows = page.cells["tried"][1:]
    assert [row[0] for row in rows] == ["<i>way 1</i>", "<i>way 2</i>"]
    for place, (row, held_out) in enumerate(zip(rows, chosen.held_out, strict=True)):
        weights = held_out.asked.weights.tolist()
        pairs = zip(weights, held_out.correct.tolist(), strict=True)
        share = sum(weight * right for weight, right in pairs)
        assert row[1] == f"{100 * share:.1f} %"
        assert row[2] == f"{held_out.loss:.3f}"
        assert row[3] == ("selected" if place == chosen.chosen else "")
    facts = page.texts["dd"]
    assert {ORIGIN.data, ORIGIN.weights, ORIGIN.versions, shlex.join(ORIGIN.command)} <= set(facts)
    assert any(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d[+-]\d\d:\d\d", fact) for fact in facts)
    commands = [shlex.split(line) for line in page.texts["pre"]]
    file, folder = str(ORIGIN.file), str(ORIGIN.file.parent)
    assert commands == [
        ["fewshot-blo", "predict", file, "IMAGES", "--output", f"{folder}/labels.csv"],
        ["fewshot-blo", "serve", file],
        ["fewshot-blo", "export", file, f"{folder}/model.onnx"],
    ]
    assert page.items[""] == ["3 entries\\npassed over", *data.left_out]


def test_names_are_text_and_nothing_is_loaded(
    data: LabelledImages, fit_one: Fit, tmp_path: Path
) -> None:
    page, text = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([answered(data)]))
    assert set(page.texts) <= TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert all(s.startswith("data:image/jpeg;base64,") for s in page.values("src"))
    targets = {f"#{name}" for name in page.values("id")}
    assert set(page.values("href")) <= targets
    assert ("html", "lang", "en") in page.attributes
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.values("content")[0]
    assert f"style-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "url(" not in style
    assert "prefers-color-scheme: dark" in style


def test_near_duplicates_are_capped(fit_one: Fit, tmp_path: Path) -> None:
    data = images_of(30, 30)
    groups = torch.arange(60) // 2 * 2  # 30 pairs, of which the first five become one group.
    groups[:10] = 0
    data = replace(data, groups=groups)
    page, text = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([answered(data)]))
    captions = page.figures["duplicates"]
    assert len(captions) == 6 + 11 * 2
    assert captions[:6] == [Path(file).name for file in data.files[:6]]
    assert "4 more images of this group are not shown." in text
    assert "14 more groups are not shown." in text
    assert [row[:3] for row in page.cells["classes"][1:]] == [
        [HOSTILE[0], "30", "11"],
        [HOSTILE[1], "30", "15"],
    ]


def test_without_held_out_images(fit_one: Fit, tmp_path: Path) -> None:
    data = images_of(1, 1, 1)
    page, _ = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([answered(data)]))
    assert "not measured" in page.texts["p"][1]
    assert page.texts["h2"] == [
        *("What to do next", "Classes", "Map of the images", "What was tried"),
        "Where it comes from",
    ]
    assert page.cells["classes"][1] == [HOSTILE[0], "1", "never held out", "not measured", ""]
    assert page.values("type", "input") == ["radio"] * 3


def test_two_classes_and_a_test_set(fit_one: Fit, tmp_path: Path) -> None:
    data = images_of(3, 4)
    right, labels = torch.tensor([True, False, True]), torch.tensor([0, 0, 0])
    chosen = replace(select([answered(data)]), promise=measured(right, labels, 2))
    page, _ = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, chosen)
    assert "on the test images 66.7 %" in page.texts["p"][2]
    assert page.cells["classes"][0][3] == "on test images"
    assert [row[3] for row in page.cells["classes"][1:]] == ["67 % of 3", "not measured"]


@pytest.mark.slow
def test_hundred_classes(fit_one: Fit, tmp_path: Path) -> None:
    names = tuple(f"class number {number} of a long name" for number in range(100))
    data = images_of(*[20] * 100, names=names)
    best = answered(data, repeats=1)
    page, text = written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([best]))
    assert len(text.encode()) < 5_000_000
    found, labels = by_loop_of_folds(best), data.labels.tolist()
    pairs: dict[tuple[int, int], int] = {}
    for image, predicted in found.items():
        if predicted != labels[image]:
            pair = (labels[image], predicted)
            pairs[pair] = pairs.get(pair, 0) + 1
    first = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
    assert page.items["confusion"][0] == (
        f"{pairs[first]} of 20 images of {names[first[0]]} are given {names[first[1]]}"
    )
    assert len(page.items["confusion"]) == 15
    assert f"{len(pairs) - 15} more pairs of classes are not shown." in text
    assert len(page.figures["wrong"]) == 48
    assert f"{sum(pairs.values()) - 48} more wrong images are not shown." in text
    assert len(page.cells["confusion"]) == 101
    assert page.values("type", "input") == ["radio"] * 2000


def by_loop_of_folds(held_out: HeldOut) -> dict[int, int]:
    """Predicted class of each image of classes of one size, of which each is held out once."""
    asked, found = held_out.asked, {}
    for row in range(len(asked.rows)):
        if int(asked.absent[row]) < 0 and not asked.half[row]:
            sizes = asked.kept[row]
            scaled = held_out.answers[row] / SCALE.temperature
            terms = sizes.double().rsqrt()
            found[int(asked.rows[row])] = int(
                (scaled + SCALE.offset * (terms - terms.mean())).argmax()
            )
    return found


@pytest.mark.slow
def test_thumbnails_stay_within_their_bytes(fit_one: Fit, tmp_path: Path) -> None:
    data = images_of(700, 700, side=64)
    _, text = written(
        tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([answered(data, repeats=1)])
    )
    assert len(text.encode()) < 5_000_000
    blank = re.search(r"(\d+) images have no thumbnail, to keep this file small", text)
    assert blank
    tips = text.partition('<div class="map')[2]
    assert int(blank.group(1)) == 1400 - tips.count("<img ")
    thumbnails = Thumbnails(data.images, 1)
    assert thumbnails(0)
    assert thumbnails(1) == ""


def flipped() -> tuple[Answers, Tensor, list[int]]:
    """Three clusters whose images are answered by cluster; four labels are wrong."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.arange(3).repeat_interleave(12)
    labels, planted = truth.clone(), [2, 13, 25, 30]
    labels[planted] = (labels[planted] + 1) % 3
    features = 3 * torch.eye(3)[truth] + 0.5 * torch.randn(36, 3, generator=generator)
    logits = 6 * torch.eye(3)[truth] + torch.randn(36, 3, generator=generator)
    return Answers(labels, torch.ones(36, dtype=torch.bool), logits.softmax(1)), features, planted


def test_labels_to_check() -> None:
    answers, features, planted = flipped()
    groups = torch.arange(36)
    groups[3] = 2  # A copy of the first of the four has the same wrong label.
    expected = []
    for row in range(36):
        chances, label = answers.probabilities[row].tolist(), int(answers.labels[row])
        predicted = chances.index(max(chances))
        if max(chances) < 0.7 or chances[label] > 0.1:
            continue

        def cosine(other: int, row: int = row) -> float:
            a, b = features[row].tolist(), features[other].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            return float(dot / math.hypot(*a) / math.hypot(*b))

        others = [other for other in range(36) if groups[other] != groups[row]]
        nearest = sorted(others, key=lambda other: -cosine(other))[:5]
        votes = [sum(int(answers.labels[n]) == c for n in nearest) for c in range(3)]
        if votes[predicted] == max(2, *votes) and votes[label] <= 1:
            expected.append((chances[label], row, tuple(nearest), votes[predicted]))
    found = [(s.row, s.nearest, s.agreeing) for s in suspects(answers, features, groups)]
    assert found == [entry[1:] for entry in sorted(expected)]
    assert {row for row, _, _ in found} >= set(planted)


def test_images_never_held_out_are_not_suspected() -> None:
    answers, features, _ = flipped()
    nothing = replace(answers, known=torch.zeros(36, dtype=torch.bool))
    assert suspects(nothing, features, torch.arange(36)) == []


def test_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 5, 1, 1, 1, 1]) + 2
    found = feature_map(features, torch.zeros(50, dtype=torch.bool))
    units = torch.nn.functional.normalize(features.double())
    values = torch.linalg.eigvalsh(torch.cov(units.T)).flip(0)
    assert found.shown == pytest.approx(float(values[:2].sum() / values.sum()))
    assert found.rows == list(range(50))
    assert found.places.amin() == pytest.approx(3)
    assert found.places.amax() == pytest.approx(97)
    variances = torch.linalg.eigh(torch.cov(units.T)).eigenvectors[:, -1]
    along = (units - units.mean(0)) @ variances
    places = found.places[:, 0]
    assert abs(torch.corrcoef(torch.stack([along, places]))[0, 1]) == pytest.approx(1)
    assert len({mark(label) for label in range(35)}) == 35


def test_of_many_images_the_wrong_ones_are_drawn() -> None:
    wrong = torch.zeros(2500, dtype=torch.bool)
    wrong[::50] = True
    found = feature_map(torch.randn(2500, 3, generator=torch.Generator().manual_seed(0)), wrong)
    assert len(found.rows) == 2000
    assert set(range(0, 2500, 50)) <= set(found.rows)


def test_what_cannot_be_seen_is_escaped() -> None:
    assert shown("a\nb\x1b[0m\udcff\u202e") == "a\\nb\\x1b[0m\\udcff\\u202e"
    assert shown("日本\u3000語 é 👩\u200d🔬") == "日本\u3000語 é 👩\u200d🔬"


def test_answers_are_those_of_the_loop(data: LabelledImages) -> None:
    best = answered(data)
    answers = answers_of(best)
    for image, chances in by_loop(best).items():
        assert answers.probabilities[image].tolist() == pytest.approx(chances, abs=1e-5)
    assert answers.unasked == 1

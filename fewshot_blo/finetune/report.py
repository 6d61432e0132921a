"""The report on a fine-tuned classifier, one HTML file without anything beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.selection import Selection
from fewshot_blo.records.files import atomic_write

_SHOWN = 24
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#555555")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
h2 { margin-top: 2.5rem } table { border-collapse: collapse } .scroll { overflow-x: auto }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
tr.chosen { font-weight: 600; background: #eef5fb }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 8.5rem }
figure img { width: 8.5rem; height: 8.5rem; object-fit: cover; border-radius: .3rem }
figcaption { font-size: .85rem; line-height: 1.3; overflow-wrap: anywhere }
.wrong { color: #b3261e } .note { color: #555 } svg { max-width: 100%; height: auto }
.legend span { margin-right: 1.2rem; white-space: nowrap }
"""


def write_report(
    path: Path, data: LabelledImages, classifier: Classifier, selection: Selection
) -> None:
    """Accuracy, choice, confusions, doubtful images and a map of the features.

    Args:
        path: of the HTML file.
        data: the training images.
        classifier: what was fine-tuned on them.
        selection: how it was chosen.
    """
    best = selection.held_out[selection.chosen]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Fine-tuned classifier</title><style>{_STYLE}</style></head><body>",
        f"<h1>{len(data.class_names)} classes from {len(data.labels)} images</h1>",
        f"<p>{escape(classifier.source.name)} at {classifier.size} pixels. "
        f"{escape(_sentence(selection.describe()))} {_warning(selection)}</p>",
        "<h2>How it was fine-tuned</h2>",
        f"<p>{escape(_sentence(selection.reason))}</p>",
        _candidates(selection) if selection.count else "",
    ]
    if selection.count:
        parts += [
            "<h2>What is taken for what</h2>",
            "<p class=note>Held-out images: rows are their classes, columns what they were taken "
            "for.</p>",
            _confusion(best, data.class_names),
            "<h2>Wrong and doubtful images</h2>",
            _gallery(best, data, classifier.temperature),
        ]
    parts += [
        "<h2>Map of the images</h2>",
        "<p class=note>The two directions in which the network's features differ most, before "
        "fine-tuning. Point at a dot for its file.</p>",
        _map(classifier.pretrained(classifier.features), data),
    ]
    if data.left_out:
        listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in data.left_out)
        parts.append(f"<h2>Left out</h2><ul>{listed}</ul>")
    parts.append("</body></html>\n")
    with atomic_write(path) as file:
        file.write("\n".join(parts).encode())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _warning(selection: Selection) -> str:
    if 0 < selection.count < 50:
        return "So few images tell little: the interval is wide."
    return ""


def _candidates(selection: Selection) -> str:
    rows = []
    for place, held_out in enumerate(selection.held_out):
        right, loss = int(held_out.right.sum()), float(held_out.log_loss().nanmean())
        chosen = " class=chosen" if place == selection.chosen else ""
        share = f"{100 * right / selection.count:.0f} %"
        rows.append(
            f"<tr{chosen}><td>{escape(held_out.candidate.name)}</td>"
            f"<td>{right} of {selection.count}</td><td>{share}</td><td>{loss:.2f}</td></tr>"
        )
    return (
        "<div class=scroll><table><tr><th>what adapts</th><th>held-out images right</th>"
        f"<th></th><th>log-loss</th></tr>{''.join(rows)}</table></div>"
    )


def _confusion(held_out: HeldOut, names: Sequence[str]) -> str:
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    known = held_out.known
    found = held_out.logits[known].argmax(1)
    counts.index_put_((held_out.labels[known], found), torch.tensor(1), accumulate=True)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, row in zip(names, counts.tolist(), strict=True):
        total, place = max(sum(row), 1), names.index(name)
        cells = "".join(
            f"<td style='background: {_shade(count / total, column == place)}'>{count or ''}</td>"
            for column, count in enumerate(row)
        )
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f"<div class=scroll><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _shade(share: float, right: bool) -> str:
    colour = "0, 114, 178" if right else "213, 94, 0"
    return f"rgba({colour}, {0.6 * share:.2f})"


def _gallery(held_out: HeldOut, data: LabelledImages, temperature: float) -> str:
    """Wrong images first, the surest first of them, then right ones, the least sure first."""
    probabilities = (held_out.logits / temperature).softmax(1)
    sure, found = probabilities.max(1)
    wrong = (found != held_out.labels) & held_out.known
    order = torch.where(wrong, -1 - sure, sure).masked_fill(~held_out.known, torch.inf).argsort()
    figures = []
    for place in order[: min(_SHOWN, int(held_out.known.sum()))].tolist():
        name, taken = data.class_names[data.labels[place]], data.class_names[found[place]]
        percent = f"{100 * float(sure[place]):.0f} %"
        text = f"{escape(name)}, {percent} sure"
        if wrong[place]:
            text = f"<span class=wrong>{escape(name)}</span>, taken for {escape(taken)}, {percent}"
        file = escape(Path(data.files[place]).name)
        figures.append(
            f"<figure><img src='{_thumbnail(data.images[place])}' alt='{escape(name)}'>"
            f"<figcaption>{text}<br>{file}</figcaption></figure>"
        )
    return f"<div class=gallery>{''.join(figures)}</div>"


def _thumbnail(image: Tensor) -> str:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((136, 136))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _map(features: Tensor, data: LabelledImages) -> str:
    centred = torch.nn.functional.normalize(features.double() - features.double().mean(0))
    rank = min(2, *centred.shape)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    places = torch.nn.functional.pad(u[:, :rank] * s[:rank], (0, 2 - rank))
    low, high = places.amin(0), places.amax(0)
    places = (places - low) / (high - low).clamp(min=1e-12)
    dots = []
    for place, (x, y) in enumerate(places.tolist()):
        label = int(data.labels[place])
        title = f"{data.class_names[label]}: {Path(data.files[place]).name}"
        dots.append(
            f"<circle cx='{20 + 660 * x:.1f}' cy='{440 - 420 * y:.1f}' r='7' "
            f"fill='{_colour(label)}' fill-opacity='0.8'><title>{escape(title)}</title></circle>"
        )
    legend = "".join(
        f"<span><svg width=14 height=14><circle cx=7 cy=7 r=6 fill='{_colour(n)}'/></svg> "
        f"{escape(name)}</span>"
        for n, name in enumerate(data.class_names)
    )
    return (
        f"<svg viewBox='0 0 700 460' role=img aria-label='Map of the features'>{''.join(dots)}"
        f"</svg><p class=legend>{legend}</p>"
    )


def _colour(label: int) -> str:
    if label < len(_COLOURS):
        return _COLOURS[label]
    return f"hsl({label * 137.5 % 360:.0f}, 60%, 45%)"

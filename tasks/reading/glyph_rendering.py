"""Rendering of glyphs: font faces, letters that look different, distorted images of them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewshot_blo.tasks.errors import DataError

SCRIPTS = (
    "Arabic",
    "Armenian",
    "Canadian Syllabics",
    "Coptic",
    "Cyrillic",
    "Georgian",
    "Greek",
    "Hebrew",
    "Lao",
    "Latin",
    "Lisu",
    "Nko",
    "Ogham",
    "Old Italic",
    "Tifinagh",
)
# The first defines the letters. Images take the faces in turn, so neighbours differ most.
FACES = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-BoldOblique",
    "STIXGeneral",
    "STIXGeneralItalic",
    "DejaVuSerif-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneralBol",
    "DejaVuSans-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-Oblique",
    "STIXGeneralBolIta",
    "DejaVuSansMono-BoldOblique",
)

_CANVAS = 64
_LONG_SIDE = 48
_FONT_SIZE = 80
# In pixels of ink, for a letter 24 pixels long: below this difference, two letters are one class.
LOOK_ALIKE = 5.5

# Distortion. Lengths are in units of half the image: its border is at 1.
_INK_HALF = 0.66
_EDGE = 0.83
_ROTATION = math.radians(10)
_SHEAR = 0.2
_SCALE = 0.2
_SHIFT = 0.15
_WARP = 0.05
_INK_THRESHOLD = (0.3, 0.52)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Face:
    """Letters of one font file, all scaled to one size and centred.

    Attributes:
        characters: code points, ascending.
        glyphs: ``[characters, 64, 64]``, ink 255 on 0; the longer side of the ink is 48 pixels.
    """

    characters: tuple[int, ...]
    glyphs: Bytes


def script(character: int) -> str | None:
    """The entry of ``SCRIPTS`` that the character's Unicode name starts with, or None."""
    name = unicodedata.name(chr(character), "")
    return next((s for s in SCRIPTS if name.startswith(s.upper() + " ")), None)


def read_faces() -> list[Face]:
    """The letters of every face, drawn without distortion.

    Raises:
        DataError: if the font folder or a font is missing.
    """
    folder = _font_folder()
    charmaps = [_charmap(folder / f"{name}.ttf") for name in FACES]
    letters = sorted(c for c in charmaps[0] if _is_letter(c))
    return [
        _draw_face(folder / f"{name}.ttf", [c for c in letters if c in charmap])
        for name, charmap in zip(FACES, charmaps, strict=True)
    ]


def _font_folder() -> Path:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FACES if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks the fonts {missing}: the glyphs are drawn from the fonts that "
            "matplotlib carries, so install matplotlib with its data files"
        )
    return folder


def _charmap(path: Path) -> set[int]:
    from matplotlib.ft2font import FT2Font

    return set(FT2Font(str(path)).get_charmap())


def _is_letter(character: int) -> bool:
    """Whether a code point is a base letter of one of ``SCRIPTS``.

    Excludes modifiers, compatibility and presentation forms, accented letters, and the Canadian
    finals, which are small dots and strokes.
    """
    text = chr(character)
    return (
        unicodedata.category(text) in ("Lu", "Ll", "Lo")
        and unicodedata.normalize("NFKD", text) == text
        and not 0xFB00 <= character < 0xFF00
        and script(character) is not None
        and not unicodedata.name(text).startswith("CANADIAN SYLLABICS FINAL")
    )


def _draw_face(path: Path, characters: Sequence[int]) -> Face:
    font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    drawn = {c: glyph for c in characters if (glyph := _draw(font, chr(c))) is not None}
    return Face(tuple(drawn), np.stack(list(drawn.values())))


def _draw(font: ImageFont.FreeTypeFont, text: str) -> Bytes | None:
    """Draws one letter ``[64, 64]``; None if it has no ink."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    drawing = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(drawing).text((1 - left, 1 - top), text, fill=255, font=font)
    ink = drawing.getbbox()
    if ink is None:
        return None
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    scale = _LONG_SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    letter = drawing.resize(size, Image.Resampling.BICUBIC, box=ink)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(letter, ((_CANVAS - size[0]) // 2, (_CANVAS - size[1]) // 2))
    return np.asarray(canvas)


def distinct_characters(faces: Sequence[Face]) -> list[int]:
    """Code points of which no two look alike in any face; of look-alikes, the lowest is kept."""
    characters = faces[0].characters
    nearest = torch.full((len(characters), len(characters)), math.inf)
    for face in faces:
        at = torch.from_numpy(np.searchsorted(characters, face.characters))
        rows, columns = at[:, None], at[None]
        nearest[rows, columns] = nearest[rows, columns].minimum(difference(face.glyphs))
    alike = nearest < LOOK_ALIKE
    kept = torch.zeros(len(characters), dtype=torch.bool)
    for i in range(len(characters)):
        kept[i] = not bool((alike[i] & kept).any())
    return [c for c, keep in zip(characters, kept.tolist(), strict=True) if keep]


def difference(glyphs: Bytes) -> Tensor:
    """Pairwise visual difference ``[n, n]`` of glyphs ``[n, 64, 64]`` of one face; 0 if equal.

    It is the ink of either glyph that is more than a pixel away from the ink of the other, in
    pixels of a letter 24 pixels long. Unlike correlation, it is sensitive to a dot or a bar, which
    make a different letter, and insensitive to slightly misaligned strokes. Glyphs whose aspect
    ratios the distortion could make equal are also compared at equal width and height, and the
    smaller difference counts.
    """
    ink = torch.from_numpy(glyphs).float().div_(255)
    half = _half_extent(ink)
    to_square = torch.diag_embed(half * (_CANVAS / _LONG_SIDE))
    affine = F.pad(to_square, (0, 1))
    grid = F.affine_grid(affine, [len(ink), 1, _CANVAS, _CANVAS], align_corners=False)
    square = F.grid_sample(ink[:, None], grid, align_corners=False)[:, 0]

    # A single stroke has almost no width: scaled to a square, it would be solid ink.
    aspect = (half[:, 0] / half[:, 1]).log()
    solid = aspect.abs() > math.log(3)
    comparable = (aspect[:, None] - aspect).abs() < math.log((1 + _SCALE) / (1 - _SCALE))
    comparable &= ~(solid[:, None] | solid)
    apart = _ink_beyond(ink)
    return torch.where(comparable, apart.minimum(_ink_beyond(square)), apart)


def _ink_beyond(ink: Tensor) -> Tensor:
    """Ink of one image with no ink of the other nearby; the larger of both directions."""
    ink = F.avg_pool2d(ink[:, None], 2)
    near = F.max_pool2d(ink, 3, stride=1, padding=1).flatten(1)
    ink = ink.flatten(1)
    beyond = (ink * near).sum(1, keepdim=True) - ink @ near.T
    return torch.maximum(beyond, beyond.T).clamp_(min=0)


def _half_extent(glyphs: Tensor) -> Tensor:
    """Half the width and height of the ink, ``[n, 2]``, in units of half the canvas."""
    edges = (torch.arange(_CANVAS) + 0.5 - _CANVAS / 2).abs().add(0.5) / (_CANVAS / 2)
    return torch.stack([(glyphs.amax(axis).sign() * edges).amax(1) for axis in (1, 2)], 1)


def render(faces: Sequence[Face], characters: Sequence[int], *, count: int, size: int) -> Tensor:
    """``count`` images of each character, ``[characters * count, 1, size, size]``, uint8.

    Image i of a character depends only on the character and i. The images take the faces that
    have the character in turn, each with its own small distortion: rotation, shear, scale, shift,
    stroke width and a smooth warp.
    """
    rows = [{c: row for row, c in enumerate(face.characters)} for face in faces]
    pictures = []
    # One character at a time: rounding can depend on the batch size.
    for character in characters:
        glyphs = [
            face.glyphs[row[character]]
            for face, row in zip(faces, rows, strict=True)
            if character in row
        ]
        chosen = np.stack([glyphs[index % len(glyphs)] for index in range(count)])
        rng = [np.random.default_rng((character, index)) for index in range(count)]
        affine = np.stack([r.uniform(-1, 1, size=7) for r in rng])
        warp = np.stack([r.uniform(-1, 1, size=(2, 4, 4)) for r in rng])
        pictures.append(
            _distort(
                torch.from_numpy(chosen).float().div_(255),
                torch.from_numpy(affine).float(),
                torch.from_numpy(warp).float(),
                size,
            )
        )
    return torch.cat(pictures)


def _distort(glyphs: Tensor, draws: Tensor, warp: Tensor, size: int) -> Tensor:
    """Distorts glyphs ``[n, 64, 64]`` by draws ``[n, 7]`` and ``[n, 2, 4, 4]`` in [-1, 1]."""
    # Small images are drawn at twice the size and averaged, which antialiases edges.
    fold = 2 if size < _CANVAS else 1
    fine = fold * size
    spline = F.interpolate(
        torch.eye(4)[None, None], size=(fine, 4), mode="bicubic", align_corners=True
    )[0, 0]
    grid = _affine_grid(glyphs, draws[:, :6], fine)
    grid = grid + (spline @ (warp * _WARP) @ spline.T).movedim(1, -1)
    soft = F.avg_pool2d(glyphs[:, None], 3, stride=1, padding=1)
    soft = F.grid_sample(soft, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The threshold on the blurred edge sets the stroke width and sharpens the edge.
    low, high = _INK_THRESHOLD
    threshold = low + (high - low) * (draws[:, 6] + 1) / 2
    ink = ((soft - threshold[:, None, None, None]) * 4 + 0.5).clamp_(0, 1)
    return F.avg_pool2d(ink, fold).mul_(255).round_().to(torch.uint8)


def _affine_grid(glyphs: Tensor, draws: Tensor, size: int) -> Tensor:
    """Sampling grid ``[n, size, size, 2]`` for ``grid_sample``, from draws ``[n, 6]``.

    A letter that would leave the image is scaled down, and shifted only as far as there is room.
    """
    angle, shear = draws[:, 0] * _ROTATION, draws[:, 1] * _SHEAR
    unit = _INK_HALF * _CANVAS / _LONG_SIDE
    x_scale, y_scale = (unit * (1 + draws[:, k] * _SCALE) for k in (2, 3))
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([cos * x_scale, (shear * cos - sin) * y_scale], 1)
    bottom = torch.stack([sin * x_scale, (shear * sin + cos) * y_scale], 1)
    matrix = torch.stack([top, bottom], 1)

    extent = (matrix.abs() @ _half_extent(glyphs)[:, :, None])[:, :, 0]
    fit = (_EDGE / extent).amin(1).clamp(max=1)
    matrix, extent = matrix * fit[:, None, None], extent * fit[:, None]
    shift = draws[:, 4:6] * (_EDGE - extent).clamp(max=_SHIFT)

    inverse = torch.linalg.inv(matrix)
    affine = torch.cat([inverse, -inverse @ shift[:, :, None]], 2)
    return F.affine_grid(affine, [len(glyphs), 1, size, size], align_corners=False)

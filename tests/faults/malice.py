"""Files that somebody made to do harm: code in pickles, bombs, links, pipes and paths."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from small_images import NAMES, picture
from small_runs import make_folder, options

from faults.child import Ended, in_child
from faults.programs import NETWORK
from faults.row import Row
from fewshot_blo.commands import main as cli

_SECONDS, _MEMORY = 60, 6 * 2**30
"""Limits of one command: a bomb must not reach them, a pipe must not wait for them."""


class Harm:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def measure(place: Path) -> Iterator[Row]:
    """Rows for pickles, pictures, archives and folders.

    Args:
        place: an empty folder to work in.
    """
    images = make_folder(place / "classes")
    yield _pickles(place, images)
    for name, make in _FOLDERS.items():
        row = Row("malice", name)
        for number, fill in enumerate(make):
            root = place / f"{name}{number}".replace(" ", "")
            _good(root)
            fill(root)
            words = ["finetune", str(root), f"--backbone={NETWORK}", "--adapts=head"]
            strict = _judged(place, [*words, f"--output={place / 'out'}"])
            words.append("--skip_unreadable=true")
            row.add(strict or _judged(place, [*words, f"--output={place / 'out'}"]))
        yield row
    yield _archives(place)


def _judged(place: Path, words: list[str], wanted: tuple[int, ...] = (0, 1)) -> str | None:
    """Why a command did not end in time with a message or a result, or None."""

    def limited() -> int:
        signal.alarm(_SECONDS)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY + 2**33,) * 2)
        return cli.main(words)

    return _wrong(in_child(limited, place / "watched"), wanted, " ".join(words))


def _wrong(ended: Ended, wanted: tuple[int, ...], what: str) -> str | None:
    if "Traceback" in ended.text:
        return f"{what}: a traceback: {ended.text[-400:]}"
    if ended.status not in wanted:
        return f"{what}: ended with {ended.status}: {ended.text[-400:]}"
    return None


def _good(root: Path) -> None:
    for colour, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(3):
            picture(colour, number).save(root / name / f"{number}.png")


def _pickles(place: Path, images: Path) -> Row:
    """Every file of tensors that a command reads, with an object whose unpickling runs code."""
    row = Row("malice", "code in pickles")
    mark = place / "mark"
    run = place / "harm"
    run.mkdir()
    zipped = run / "last.pt"
    torch.save({"outer": Harm(mark)}, zipped)
    plain = run / "plain.pth"
    plain.write_bytes(pickle.dumps({"weight": Harm(mark)}))
    mini = place / "mini"
    mini.mkdir()
    for part in ("train", "val", "test"):
        (mini / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(Harm(mark)))
    for file in (zipped, plain):
        for words in (
            ["evaluate", str(file), "--tasks=2"],
            ["predict", str(file), str(images)],
            ["export", str(file), str(place / "x.onnx")],
            ["train", f"--run={place / 'new'}", *options(images), f"--encoder.weights={file}"],
            ["finetune", str(images), f"--weights={file}", f"--output={place / 'new2'}"],
        ):
            row.add(_judged(place, words, (1, 2)) or _executed(mark))
    row.add(
        _judged(place, ["train", f"--run={run}", *options(images), "--resume"], (1,))
        or _executed(mark)
    )
    row.add(
        _judged(place, ["data", "--data=MiniImageNet", f"--data.root={mini}"], (1, 2))
        or _executed(mark)
    )
    return row


def _executed(mark: Path) -> str | None:
    if not mark.exists():
        return None
    mark.unlink()
    return "the code in the file was executed"


def _png(width: int, height: int, rows: int) -> bytes:
    """A grey PNG that states a size, with so many rows of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer, packed = zlib.compressobj(), b""
    for _ in range(rows):
        packed += packer.compress(bytes(width + 1))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", packed + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        (root / NAMES[0] / name).write_bytes(content)

    return fill


def _link(target: str) -> Callable[[Path], None]:
    return lambda root: (root / NAMES[0] / "x.png").symlink_to(target)


def _made(make: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: make(root / NAMES[0] / "x.png")


def _table(rows: str) -> Callable[[Path], None]:
    """A table in a folder without class folders."""

    def fill(root: Path) -> None:
        for name in NAMES:
            (root / name).rename(root.with_name(root.name + name))
        (root / "labels.csv").write_text(rows)

    return fill


def _bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(2**26))
    return packed.getvalue()


_FOLDERS: dict[str, list[Callable[[Path], None]]] = {
    "pictures": [
        _file("wide.png", _png(60_000, 60_000, 10)),
        _file("real.png", _png(30_000, 9_000, 9_000)),
        _file("zero.png", _png(0, 0, 0)),
        _file("empty.png", b""),
        _file("cut.png", _png(64, 64, 64)[:60]),
        _file("text.png", b"<script>alert(1)</script>"),
        _file("zip.png", _bomb()),
        _file("svg.svg", b"<!DOCTYPE x [<!ENTITY a 'a'>]><svg>&a;</svg>"),
        _file("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/x) (w) file\n"),
    ],
    "pipes and links": [
        _made(lambda path: os.mkfifo(path)),
        _link("/dev/zero"),
        _link("/dev/random"),
        _link("/proc/self/mem"),
        _link("x.png"),
        _link(".."),
        _link("/"),
        _link("nowhere"),
        _made(lambda path: path.mkdir()),
    ],
    "tables": [
        _table("file,label\n../../../../etc/passwd,a\n/etc/hostname,b\n"),
        _table("file,label\n/dev/zero,a\n/dev/random,b\n"),
        _table("file,label\n" + "a" * 2_000_000 + ",b\n"),
        _table("file,label\n\x00,a\n\x00,b\n"),
        _table('file,label\n"unclosed,a\n'),
        _table("file,label\n.,a\n..,b\n"),
    ],
}


def _archives(place: Path) -> Row:
    """Archives of data sets."""
    row = Row("malice", "archives")
    for number, names in enumerate((("../../up.png",), ("/tmp/up.png",), ("a/b/\x00.png",))):
        root = place / f"archive{number}"
        root.mkdir()
        for group in ("images_background", "images_evaluation"):
            with zipfile.ZipFile(root / f"{group}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.writestr(name, bytes(2**26))
        row.add(_judged(place, ["data", "--data=Omniglot", f"--data.root={root}"], (1,)))
    digits = place / "digits"
    digits.mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            content = gzip.compress(bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3 + bytes(2**28))
            (digits / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    study = Path(__file__).parents[2] / "recipes/studies/augmentation.yaml"
    words = ["study", str(study), f"--root={digits}", f"--folder={place / 'study'}"]
    row.add(_judged(place, words, (1,)))
    return row

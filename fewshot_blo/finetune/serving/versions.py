"""``Versions``: the classifier that is served, which grows, and the versions before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export.standalone import NONE
from fewshot_blo.finetune.files import save_version
from fewshot_blo.finetune.growing import Growth, add_class, add_images
from fewshot_blo.finetune.serving.answers import Picture, decoded

_KEPT = 50
"""Number of versions that are held in memory, which undo goes back through."""
_LONGEST = 100
_Learn = Callable[[Classifier, str, Tensor, Sequence[str]], Growth]


@dataclass(frozen=True)
class Version:
    """A classifier in its file.

    Attributes:
        number: number of the version, counted from 1 while the server runs.
        classifier: the classifier.
        file: the file that holds it.
        said: what was learned in it, and what was doubtful.
    """

    number: int
    classifier: Classifier
    file: Path
    said: tuple[str, ...] = ()


class Versions:
    """The versions of a classifier; each is written beside the one before it.

    Methods may be called from several threads. Versions change one at a time.

    Args:
        classifier: the classifier.
        file: the file that it was read from.
        folder: folder of new versions; by default that of the file.
    """

    def __init__(self, classifier: Classifier, file: Path, folder: Path | None = None) -> None:
        self._name = file if folder is None else folder / file.name
        self._versions = [Version(1, classifier, file)]
        self._undone: Version | None = None
        self._last = 1
        self._lock = threading.Lock()

    @property
    def now(self) -> Version:
        """The version that is served."""
        return self._versions[-1]

    @property
    def can_undo(self) -> bool:
        """Whether there is a version before."""
        return len(self._versions) > 1

    def numbered(self, number: int) -> Version | None:
        """The version of that number, if it is in memory.

        The one that was undone last is: a page may still load the pictures of its answers.
        """
        held = [*self._versions, *([self._undone] if self._undone else [])]
        return next((v for v in held if v.number == number), None)

    def add_class(self, name: str, pictures: Sequence[Picture]) -> tuple[Version, Growth]:
        """Learns a new class.

        Raises:
            ConfigurationError: if the name or the images do not do, as in ``growing.add_class``.
            DataError: if a picture cannot be decoded.
            CheckpointError: if the new version cannot be written.
        """
        return self._grow(add_class, _checked(name), pictures)

    def add_images(self, name: str, pictures: Sequence[Picture]) -> tuple[Version, Growth]:
        """Learns more images of a class; errors as in ``add_class``."""
        return self._grow(add_images, name, pictures)

    def undo(self) -> Version:
        """Goes back to the version before; the file of the later one stays.

        Raises:
            ConfigurationError: if there is none.
        """
        with self._lock:
            if not self.can_undo:
                raise ConfigurationError("there is no version before this one")
            self._undone = self._versions.pop()
            return self.now

    def _grow(
        self, learn: _Learn, name: str, pictures: Sequence[Picture]
    ) -> tuple[Version, Growth]:
        with self._lock:
            before = self.now.classifier
            growth = learn(before, name, decoded(pictures, before), [p.name for p in pictures])
            return self._next(growth), growth

    def _next(self, growth: Growth) -> Version:
        if growth.classifier is self.now.classifier:
            return self.now
        file = save_version(growth.classifier, self._name)
        self._last += 1
        said = (growth.describe(), *growth.notes)
        self._versions.append(Version(self._last, growth.classifier, file, said))
        del self._versions[:-_KEPT]
        return self.now


def _checked(name: str) -> str:
    """A name that a person typed, without space around it."""
    name = name.strip()
    if name == NONE:
        raise ConfigurationError(f"'{NONE}' says that an image is of no class: choose another name")
    if len(name) > _LONGEST or not name.isprintable():
        raise ConfigurationError(
            f"the name of the class has {len(name)} characters: use at most {_LONGEST}, in one line"
        )
    return name

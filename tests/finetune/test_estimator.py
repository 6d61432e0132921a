"""The scikit-learn estimator."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_images import picture, smooth

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import LabelledImages, estimator
from fewshot_blo.finetune.estimator import FewShotClassifier

NETWORK = "small_networks:network"


@pytest.fixture
def arrays() -> tuple[NDArray[Any], NDArray[Any]]:
    """Images of three colours in a mixed order, with labels that are words."""
    images = np.stack([np.asarray(picture(n % 3, n)) for n in range(12)])
    return images, np.array(["red", "green", "blue"])[np.arange(12) % 3]


def test_kinds_of_images(arrays: tuple[Any, Any], make_folder: Callable[..., Path]) -> None:
    images, labels = arrays
    model = FewShotClassifier(NETWORK, adapts="head").fit(images, labels)
    assert model.classes_.tolist() == ["blue", "green", "red"]
    assert model.model_.class_names == ("blue", "green", "red")
    assert (model.predict(images) == labels).all()
    assert model.accuracy_ is not None
    assert 0.5 < model.accuracy_ <= 1
    probabilities = model.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    assert (model.score(images, labels)) == 1
    for same in (images / 255.0, [picture(n % 3, n) for n in range(12)], list(images)):
        np.testing.assert_allclose(model.predict_proba(same), probabilities, atol=1e-5)
    files = sorted(make_folder(2, 2, 2).rglob("*.png"))
    assert set(model.predict(files)) <= {"red", "green", "blue"}
    assert (model.predict(np.array([str(file) for file in files])) == model.predict(files)).all()
    assert (model.predict(files[0].parents[1]) == model.predict(files)).all()
    assert (model.predict([Image.open(file) for file in files]) == model.predict(files)).all()
    grey = images.mean(3).astype(np.uint8)
    assert FewShotClassifier(NETWORK, adapts="head").fit(grey, labels).predict(grey).shape == (12,)


def test_in_scikit_learn(arrays: tuple[Any, Any]) -> None:
    images, labels = arrays
    model = FewShotClassifier(NETWORK, adapts="head")
    assert clone(model).get_params() == model.get_params()
    steps = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), model)
    scores = cross_val_score(steps, images, labels, cv=StratifiedKFold(2))
    assert scores.shape == (2,)
    again = pickle.loads(pickle.dumps(model.fit(images, labels)))
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))


@parametrize_with_checks([FewShotClassifier(None)])  # type: ignore[untyped-decorator]
def test_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (np.zeros((4, 3)), [0, 0, 1, 1], "holds no images"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0, 0, 0, 0], "one class"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0], "4 images and y 3 labels"),
        (np.full((4, 8, 8, 3), 3.0), [0, 1, 0, 1], r"values in \[0, 1\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0.1, 0.2, 0.3, 0.4], "continuous"),
        (np.zeros((4, 8, 8, 3), np.uint8), None, "y is None and X a ndarray: give the labels"),
        ("a.png", ["a", "b"], r"one path was given, 'a.png': give a list of paths, \['a.png'\]"),
    ],
)
def test_bad_input(images: Any, labels: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FewShotClassifier(NETWORK).fit(images, labels)


def test_a_network_without_an_image_size(arrays: tuple[Any, Any]) -> None:
    with pytest.raises(
        ConfigurationError, match="small_networks:unsized has no default image size"
    ):
        FewShotClassifier("small_networks:unsized").fit(*arrays)


def test_of_one_image_alone_the_remedy_is_said(arrays: tuple[Any, Any]) -> None:
    images, labels = arrays
    model = FewShotClassifier(NETWORK, adapts="head").fit(images, labels)
    with pytest.raises(ValueError, match=r"one image of shape \(20, 24, 3\) was given"):
        model.predict(images[0])
    with pytest.raises(ValueError, match=r"give a list of paths, \['picture.jpg'\]"):
        model.predict("picture.jpg")
    assert model.predict([images[0]]).shape == (1,)


def test_a_folder_says_the_classes(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3, 3)
    model = FewShotClassifier(NETWORK, adapts="head").fit(root)
    assert model.classes_.tolist() == ["groß 緑", "red"]
    assert set(model.predict(root)) <= {"groß 緑", "red"}
    (root / "red" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"^1 entry passed over: 1 \.txt$"):
        FewShotClassifier(NETWORK, adapts="head").fit(str(root))


def test_copies_are_held_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LabelledImages] = []

    def stop(data: LabelledImages, *_: object, **__: object) -> None:
        seen.append(data)
        raise InterruptedError

    monkeypatch.setattr(estimator, "fit", stop)
    images = [smooth(number // 2) for number in range(8)]
    for labels in ("abababab", "aabbaabb"):
        with pytest.raises(InterruptedError):
            FewShotClassifier(NETWORK).fit(images, list(labels))
    assert seen[0].groups.tolist() == list(range(8))
    assert seen[1].groups.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]

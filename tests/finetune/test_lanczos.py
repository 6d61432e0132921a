"""Resizing by tensor operations, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.finetune.export.lanczos import SquareLanczos, as_pillow
from fewshot_blo.tasks.reading.images import square

SIZES = [(1, 1), (1, 9), (9, 1), (16, 16), (17, 16), (16, 17), (5, 90), (90, 5), (64, 47)]
SIZES += [(300, 200), (200, 301), (33, 700), (700, 33), (1021, 800)]
"""Width and height."""


def noise(size: tuple[int, int], channels: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)


@pytest.mark.parametrize("wanted", [16, 37])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_the_installed_pillow(size: tuple[int, int], wanted: int) -> None:
    pixels = noise(size)
    found = as_pillow(wanted)(torch.from_numpy(pixels)[None])[0]
    np.testing.assert_array_equal(found, square(Image.fromarray(pixels), size=wanted))


def test_grey_pictures() -> None:
    pixels = noise((40, 90), 1)
    found = as_pillow(20)(torch.from_numpy(pixels)[None])[0]
    np.testing.assert_array_equal(found, square(Image.fromarray(pixels[..., 0]), size=20))


@pytest.mark.parametrize("columns_first", [True, False])
def test_the_order_of_the_passes(columns_first: bool) -> None:
    # One pass at a time in Pillow, whatever the order of its own two passes.
    pixels, top = Image.fromarray(noise((10, 90))), (0, 40, 10, 50)
    filters = Image.Resampling.LANCZOS
    if columns_first:
        expected = pixels.resize((10, 20), filters, top).resize((20, 20), filters)
    else:
        expected = pixels.resize((20, 90), filters).resize((20, 20), filters, (0, 40, 20, 50))
    module = SquareLanczos(20, columns_first=columns_first)
    found = module(torch.from_numpy(np.array(pixels))[None])[0]
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of the exporter's own use of PyTorch.
@pytest.mark.parametrize("columns_first", [True, False])
def test_onnx_takes_any_size(columns_first: bool) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = SquareLanczos(37, columns_first=columns_first)
    axes = {n: torch.export.Dim(name, min=1) for n, name in enumerate(("batch", "height", "width"))}
    example = torch.zeros(2, 5, 7, 3, dtype=torch.uint8)
    program = torch.export.export(module, (example,), dynamic_shapes={"pixels": axes})
    onnx = torch.onnx.export(program, input_names=["pixels"], verbose=False)
    assert onnx is not None
    content = onnx.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for size in SIZES:
        pixels = noise(size)[None]
        expected = module(torch.from_numpy(pixels))
        (found,) = session.run(None, {"pixels": pixels})
        # The last digit of a sine may differ, so that a value at a half may round otherwise.
        differences = np.abs(found - expected.numpy())
        assert differences.max() <= 1
        assert differences.mean() <= 1e-4

"""Reads weights of pretrained networks from files, without running code in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.tensor_files import read_tensors

_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "student")
_ENCODERS = ("body.", "encoder.body.")
_PREFIXES = ("module.", "backbone.", "model.", "encoder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name from a PyTorch or safetensors file.

    Raises:
        CheckpointError: if there is no such file, or it does not hold tensors by name.
    """
    content = read_tensors(path, "weight file")
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} does not hold a state_dict (tensors by name): use another file"
        )
    other = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise CheckpointError(f"{path}: '{other}' is not a tensor; the file must hold a state_dict")
    return {str(name): value for name, value in content.items()}


def trained_weights(path: Path) -> dict[str, Tensor] | None:
    """The encoder's tensors by name from a checkpoint of ``train``; None for any other file.

    Raises:
        CheckpointError: if there is no such file, or its encoder is not a pretrained backbone.
    """
    content = read_tensors(path, "weight file")
    parts = ("outer", "buffers", "optimizer")
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(part), Mapping) for part in parts
    ):
        return None
    tensors = {**content["outer"], **content["buffers"]}
    found = {
        name.removeprefix(prefix): value
        for prefix in _ENCODERS
        for name, value in tensors.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }
    if not found:
        raise CheckpointError(
            f"{path} is a checkpoint whose encoder is not a pretrained backbone: use one that "
            "was trained with problem.network torchvision:NAME, timm:NAME or hf:NAME"
        )
    return found


def load_weights(network: nn.Module, path: Path, *, dropped: Collection[str] = ()) -> None:
    """Loads weights from a file into a network.

    Args:
        network: modified in place.
        path: path of the file. Prefixes that training code adds to all names are removed.
        dropped: names of the classifier's tensors, which this network lacks. The file may have
            them.

    Raises:
        CheckpointError: as ``read_weights``, or if the tensors belong to another network.
    """
    put_weights(network, _without_prefix(read_weights(path), network), path, dropped)


def put_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: Path, dropped: Collection[str] = ()
) -> None:
    """Copies tensors that were read from ``path`` into a network.

    Raises:
        CheckpointError: if the tensors belong to another network.
    """
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(weights) - counters)
    foreign = sorted(set(weights) - set(expected) - set(dropped))
    shapes = [
        f"'{name}' has shape {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    faults = [
        *shapes[:1],
        *(f"'{name}' is missing" for name in missing[:2]),
        *(f"'{name}' is unknown" for name in foreign[:2]),
    ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit {type(network).__name__}: {'; '.join(faults)} "
            f"({len(shapes)} shapes, {len(missing)} missing, {len(foreign)} unknown of "
            f"{len(expected)}): it is the file of another network, or of this one at "
            "another image size"
        )
    network.load_state_dict({n: p for n, p in weights.items() if n in expected}, strict=False)


def _without_prefix(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    expected = set(network.state_dict())
    for prefix in _PREFIXES:
        if expected.isdisjoint(weights) and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): p for name, p in weights.items()}
    return weights

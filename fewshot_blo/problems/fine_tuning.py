"""Tasks solved by fine-tuning a pretrained network."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fewshot_blo.backbones import Adapts, Backbone, choose_parameters, split_network
from fewshot_blo.kernel import Backend, Choice, Sample, for_tasks
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks import Head, LinearHead, TailHead
from fewshot_blo.networks.centre import Centre
from fewshot_blo.problems.shared_encoder import SharedEncoder


def fine_tuning(
    backbone: Backbone,
    image: torch.Size,
    *,
    adapts: Adapts = "head",
    blocks: int = 0,
    rank: int = 4,
    head: Head | None = None,
    unit: bool = True,
    prox: float | None = None,
    mean: Tensor | None = None,
    precision: Precision = "float32",
) -> SharedEncoder:
    """A shared encoder whose frozen layers run once a task, and whose last ones may adapt.

    outer: the parameters that adapt, where they start; inner: these and a head's. With the head
    alone nothing of the network is an outer variable.

    Source: Hu et al., "P>M>F" (arXiv 2204.07305), the fine-tuning stage.

    Args:
        backbone: its parameters become constants, but for those that adapt; it is copied.
        image: ``[C, H, W]`` of the images.
        adapts: what adapts beside the head.
        blocks, rank: as in ``choose_parameters``.
        head: linear by default.
        unit: divide features by their length.
        prox: weight of the proximal term.
        mean: of the features, which is subtracted from them, ``[D]``; none by default.
        precision: of the network's products.

    Raises:
        ConfigurationError: if the backbone does not take such images, or nothing is left to adapt.
    """
    features = backbone.features(image)
    network, names = choose_parameters(backbone, adapts, blocks=blocks, rank=rank)
    if mean is not None:
        centre = Centre(features).to(mean)
        centre.mean.copy_(mean)
        network = nn.Sequential(OrderedDict(backbone=network, centre=centre)).eval()
        names = [f"backbone.{name}" for name in names]
    if not names:
        return SharedEncoder(
            _frozen(network), head, unit=unit, prox=prox, features=features, precision=precision
        )
    split = split_network(network, names, image)
    tail_head = TailHead(
        _frozen(split.tail),
        split.adapted,
        features=features,
        head=head or LinearHead(),
        unit=unit,
        backend=_backend(split.tail, split.adapted, split.trunk, image, precision),
        precision=precision,
    )
    return SharedEncoder(_frozen(split.trunk), tail_head, prox=prox, precision=precision)


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False)


@torch.no_grad()
def _backend(
    tail: nn.Module,
    adapted: tuple[str, ...],
    trunk: nn.Module,
    image: torch.Size,
    precision: Precision,
) -> Backend:
    """The right and faster one to adapt 4 tasks of 5 images."""
    example = next(tail.parameters())
    x = trunk(torch.rand(20, *image).to(example)).unflatten(0, (4, 5))
    parameters = dict(tail.named_parameters())
    params = {name: parameters[name].expand(4, *parameters[name].shape) for name in adapted}
    sample = Sample(params, {}, x, torch.arange(4), "first")
    return Choice(tail, for_tasks(tail), precision)("auto", sample)

"""``fine_tuning``: the problem of fine-tuning a pretrained network on each task."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict

import torch
from torch import Tensor, fx, nn

from fewshot_blo.backbones import Adapts, Backbone, Split, choose_parameters, split_network
from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import Head, LinearHead, TailHead
from fewshot_blo.heads.tail import TailBackend, jittered
from fewshot_blo.kernel import Backend, Choice, Sample, for_tasks, make_forward
from fewshot_blo.kernel.precision import Precision, product_precision
from fewshot_blo.kernel.proof import ForwardCall, Proof, differentiate
from fewshot_blo.kernel.stacked.merged import MergedForward
from fewshot_blo.machine.timing import best_seconds
from fewshot_blo.networks.centre import Centre
from fewshot_blo.problems.shared_encoder import SharedEncoder
from fewshot_blo.tasks.inputs import one_of

logger = logging.getLogger(__name__)


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
    """A shared encoder whose frozen layers run once per task, and whose last layers may adapt.

    outer: initial values of the adapted parameters; inner: these parameters and the head's. If
    only the head adapts, no parameter of the network is an outer variable.

    Source: Hu et al., "P>M>F" (arXiv 2204.07305), the fine-tuning stage.

    Args:
        backbone: pretrained network, which is copied; all but the adapted parameters are frozen.
        image: shape ``(C, H, W)`` of the images.
        adapts: parameters of the network that adapt besides the head.
        blocks, rank: as in ``choose_parameters``.
        head: head of each task; linear by default.
        unit: normalize features to unit length.
        prox: weight of the proximal term; the head's default if None.
        mean: mean feature ``[D]``, which is subtracted from the features; none by default.
        precision: precision of the network's matrix products and convolutions.

    Raises:
        ConfigurationError: if the backbone does not accept such images, or no parameter adapts.
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
            _frozen(network),
            head or LinearHead(),
            unit=unit,
            prox=prox,
            features=features,
            precision=precision,
        )
    split = split_network(network, names, image)
    tail_head = TailHead(
        _frozen(split.tail),
        split.adapted,
        features=features,
        head=head or LinearHead(),
        unit=unit,
        backend=_backend(split, image, precision),
        precision=precision,
        prove=False,  # ``_backend`` has compared it already.
    )
    return SharedEncoder(_frozen(split.trunk), tail_head, prox=prox, precision=precision)


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False)


def _backend(split: Split, image: torch.Size, precision: Precision) -> TailBackend:
    """The fastest backend for 4 tasks of 5 images, among those that agree with the tail."""
    params, x = _example(split, image)
    network = for_tasks(split.tail)
    sample = Sample(params, {}, x, torch.arange(len(x)), "first", running=True)
    best: Backend = Choice(split.tail, network, precision)("auto", sample)
    if not isinstance(split.tail, fx.GraphModule) or precision == "bfloat16":
        return best
    merged = _merged(split.tail, network, split.adapted, sample)
    if isinstance(merged, str):
        logger.info("the tail uses the backend '%s': %s", best, merged)
        return best
    other = make_forward(split.tail, network, best, precision)
    with product_precision(precision, x.device):
        # Timed in turns: other load on the machine then affects both.
        seconds = [[_seconds(forward, sample) for forward in (merged, other)] for _ in range(2)]
    of_merged, of_other = map(min, zip(*seconds, strict=True))
    return "merged" if of_merged < of_other else best


def _merged(
    tail: fx.GraphModule, network: nn.Module, adapted: tuple[str, ...], sample: Sample
) -> MergedForward | str:
    """The merged tail, or why there is none: it cannot be built or differs from the tail."""
    try:
        merged = MergedForward(tail, adapted)
        proof = Proof(tail, network, sample)
        exact = MergedForward(copy.deepcopy(tail).to(one_of(proof.sample.x)), adapted)
        worst = proof.disagreement_of(exact)
    except (ConfigurationError, RuntimeError) as error:
        return str(error).splitlines()[0]
    if worst is None:
        return merged
    return f"merged, it differs by {worst.relative:.1e} of the {worst.where}"


@torch.no_grad()
def _example(split: Split, image: torch.Size) -> tuple[TaskParams, Tensor]:
    """Parameters and features that differ between 4 tasks, to detect leakage between tasks."""
    parameters = dict(split.tail.named_parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(20, *image).to(next(iter(parameters.values())))
    params = jittered({name: parameters[name] for name in split.adapted}, 4)
    return params, split.trunk(images).unflatten(0, (4, 5))


def _seconds(forward: ForwardCall, sample: Sample) -> float:
    return best_seconds(lambda: differentiate(forward, sample), sample.device)

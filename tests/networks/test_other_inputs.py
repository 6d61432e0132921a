"""Networks of vectors and sequences: PyTorch's own layers, and a plain loop over tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from oracles import assert_same, normal, plain_initialization, plain_mean, single_tasks
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import GRU, MLP, SineNetwork, TransformerEncoder, classifier
from fewshot_blo.networks.sine import SineLayer
from fewshot_blo.networks.transformer import sine_positions
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import hypergradient

M = TypeVar("M", bound=nn.Module)
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 0, 0], [3, 0, 0, 0, 0]])
SERIES = normal(3, 5, 2)
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def masked(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, "mask": REAL}


def seeded(make: Callable[[], M]) -> M:
    torch.manual_seed(0)
    return make().double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_mlp_is_the_network_of_maml() -> None:
    network = MLP().double()
    assert [tuple(p.shape) for p in network.parameters()] == [(40, 1), (40,), (40, 40), (40,)]
    first, _, second, _ = network.layers
    x = normal(7, 1)
    close(network(x), (second(first(x).relu())).relu())
    assert network(x).shape == (7, network.width)


def test_mlp_flattens_inputs_of_any_shape() -> None:
    network = MLP(shape=(2, 3), widths=(5,), activation="tanh").double()
    x = normal(4, 2, 3)
    close(network(x), torch.tanh(network.layers[0](x.flatten(1))))
    assert MLP(shape=())(torch.rand(4)).shape == (4, 40)
    with pytest.raises(ConfigurationError, match=r"widths is .*: it must be not empty"):
        MLP(widths=())


def test_sine_network() -> None:
    torch.manual_seed(0)
    network = SineNetwork(shape=(2,), widths=(300, 200), frequency=20, later_frequency=10).double()
    first, second = network.layers
    assert isinstance(first, SineLayer)
    assert isinstance(second, SineLayer)
    x = normal(4, 2)
    hidden = torch.sin(20 * (x @ first.linear.weight.T + first.linear.bias))
    close(network(x), torch.sin(10 * (hidden @ second.linear.weight.T + second.linear.bias)))
    for layer, bound in ((first, 1 / 2), (second, math.sqrt(6 / 300) / 10)):
        assert 0.95 * bound < float(layer.linear.weight.detach().abs().max()) <= bound


def pytorchs_gru(network: GRU) -> nn.GRU:
    """PyTorch's own layer with the same weights."""
    layers: list[Any] = list(network.layers)
    inputs = layers[0].of_input.in_features
    gru = nn.GRU(inputs, network.width, len(layers), batch_first=True).double()
    for number, layer in enumerate(layers):
        for name, linear in (("ih", layer.of_input), ("hh", layer.of_state)):
            for kind in ("weight", "bias"):
                with torch.no_grad():
                    getattr(gru, f"{kind}_{name}_l{number}").copy_(getattr(linear, kind))
    return gru


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_equals_pytorchs(layers: int) -> None:
    network = seeded(lambda: GRU(shape=(5, 2), width=6, layers=layers))
    theirs = pytorchs_gru(network)
    x = SERIES.clone().requires_grad_()
    packed = nn.utils.rnn.pack_padded_sequence(
        x, REAL.sum(1), batch_first=True, enforce_sorted=False
    )
    expected = theirs(packed)[1][-1]
    found = network(masked(x))
    close(found, expected)
    close(network(x), theirs(x)[1][-1])
    for own, other in zip(
        torch.autograd.grad(found.square().sum(), [x, *network.parameters()]),
        torch.autograd.grad(expected.square().sum(), [x, *_in_our_order(theirs)]),
        strict=True,
    ):
        close(own, other)


def _in_our_order(gru: nn.GRU) -> list[Tensor]:
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    return [getattr(gru, f"{name}_l{layer}") for layer in range(gru.num_layers) for name in names]


def test_gru_of_tokens() -> None:
    network = seeded(lambda: GRU(vocabulary=7, width=6))
    vectors = network.entries.layer(IDS)
    theirs, lengths = pytorchs_gru(network), REAL.sum(1).tolist()
    rows = [theirs(x[None, :n])[1][-1] for x, n in zip(vectors, lengths, strict=True)]
    close(network(IDS), torch.cat(rows))


def pytorchs_transformer(network: TransformerEncoder, heads: int) -> nn.TransformerEncoder:
    """PyTorch's own layers with the same weights."""
    block: Any = network.blocks[0]
    layer = nn.TransformerEncoderLayer(
        network.width,
        heads,
        block.linear1.out_features,
        0.0,
        "gelu",
        batch_first=True,
        norm_first=True,
    )
    theirs = nn.TransformerEncoder(
        layer, len(network.blocks), nn.LayerNorm(network.width), enable_nested_tensor=False
    ).double()
    names = {
        "self_attn.in_proj_": "attention.projections.",
        "self_attn.out_proj.": "attention.output.",
    }
    state = {}
    for name, p in theirs.state_dict().items():
        own = name.replace("layers.", "blocks.", 1)
        for before, after in names.items():
            own = own.replace(before, after)
        state[name] = network.state_dict()[own].reshape(p.shape)
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("positions", [True, False])
def test_transformer_equals_pytorchs(positions: bool) -> None:
    network = seeded(
        lambda: TransformerEncoder(
            vocabulary=7, width=8, depth=2, heads=2, hidden=12, positions=positions
        )
    )
    for p in network.parameters():
        nn.init.normal_(p, 0.0, 0.5)
    theirs = pytorchs_transformer(network, 2)
    x = network.entries.layer(IDS)
    x = x + sine_positions(x) if positions else x
    output = theirs(x, src_key_padding_mask=~REAL)
    expected = torch.stack(
        [row[:length].mean(0) for row, length in zip(output, REAL.sum(1).tolist(), strict=True)]
    )
    found = network(IDS)
    close(found, expected)
    table = network.entries.layer.get_parameter("weight")
    (own,) = torch.autograd.grad(found.square().sum(), [table])
    (other,) = torch.autograd.grad(expected.square().sum(), [table])
    close(own, other)


def test_transformer_of_vectors() -> None:
    network = seeded(lambda: TransformerEncoder(shape=(5, 2), width=8, heads=2))
    for length in (3, 5):
        mask = torch.arange(5).expand(3, 5) < length
        close(network({"x": SERIES, "mask": mask}), network(SERIES[:, :length]))
    of_a_set = seeded(lambda: TransformerEncoder(shape=(5, 2), width=8, heads=2, positions=False))
    close(of_a_set(SERIES), of_a_set(SERIES.flip(1)))
    assert not torch.allclose(network(SERIES), network(SERIES.flip(1)))


def test_positions() -> None:
    found = sine_positions(torch.zeros(1, 3, 4, dtype=torch.float64))
    place, slow = torch.arange(3.0).double(), torch.arange(3.0).double() / 100
    expected = torch.stack([place.sin(), place.cos(), slow.sin(), slow.cos()], 1)
    close(found, expected)


@pytest.mark.parametrize("make", [GRU, TransformerEncoder])
def test_padding_alone_is_finite(make: type[nn.Module]) -> None:
    network = seeded(lambda: make(vocabulary=7, width=8))
    features = network(torch.zeros(2, 3, dtype=torch.int64))
    assert features.isfinite().all()
    gradients = torch.autograd.grad(
        features.sum(), list(network.parameters()), materialize_grads=True
    )
    assert all(g.isfinite().all() for g in gradients)


def tokens_of(tasks: int, rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 7, (tasks, rows, 5), generator=generator)
    lengths = torch.randint(1, 6, (tasks, rows, 1), generator=generator)
    return ids.masked_fill(torch.arange(5) >= lengths, 0)


def batch_of(inputs: Callable[[int, int, int], Tensor]) -> TaskBatch:
    labels = torch.arange(3).expand(3, 3)
    support, query = labels.repeat_interleave(2, 1), labels
    return TaskBatch(inputs(3, 6, 0), support, inputs(3, 3, 1), query, labels)


def series_of(tasks: int, rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, rows, 4, 2, generator=generator, dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[int, int, int], Tensor]]] = {
    "MLP": (lambda: MLP(shape=(4, 2), widths=(6, 5), activation="gelu"), series_of),
    "SineNetwork": (
        lambda: SineNetwork(shape=(4, 2), widths=(6, 5), frequency=2, later_frequency=2),
        series_of,
    ),
    "TransformerEncoder of vectors": (
        lambda: TransformerEncoder(shape=(4, 2), width=4, heads=2, depth=1),
        series_of,
    ),
    "TransformerEncoder of tokens": (
        lambda: TransformerEncoder(vocabulary=7, width=4, heads=2, depth=1),
        tokens_of,
    ),
    "GRU of vectors": (lambda: GRU(shape=(4, 2), width=4, layers=2), series_of),
    "GRU of tokens": (lambda: GRU(vocabulary=7, width=4), tokens_of),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_gradients_equal_a_plain_loop(name: str) -> None:
    make, inputs = NETWORKS[name]
    encoder, batch = seeded(make), batch_of(inputs)
    network = classifier(encoder, encoder.width, 3).double()
    problem = Initialization(network)
    problem.prepare(batch)  # It compares with the module, and would warn of a fallback.
    strategy = Unroll(InnerSteps(2, SGD(0.5)))
    losses, gradient = plain_mean(
        strategy,
        [
            plain_initialization(
                network, problem.outer, task, "transductive", prox=0.0, adapted=problem.adapted
            )
            for task in single_tasks(batch)
        ],
    )
    for backend in ("batched", "loop"):
        problem.backend = backend
        step = hypergradient(
            problem, strategy, strategy.init(), batch, norm="transductive", chunk=2
        )
        assert_same({"F": step.outer_loss}, {"F": losses})
        assert_same(step.gradient, gradient)


@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_a_token_outside_of_the_vocabulary_is_named(backend: str) -> None:
    """vmap would read the table of another task."""
    batch = batch_of(tokens_of)
    assert isinstance(batch.query_x, Tensor)
    batch.query_x[0, 0, 0] = 7
    network = classifier(GRU(vocabulary=7, width=4), 4, 3).double()
    problem = Initialization(network, backend=backend, prove=False)  # type: ignore[arg-type]
    bound = problem.bind(batch, "transductive")
    with pytest.raises(ConfigurationError, match=r"token id 7: ids must be in \[0, 7\)"):
        bound.bilevel.outer_loss(bound.bilevel.inner_init)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerEncoder(width=9, heads=2), "width is 9.*2 heads"),
        (lambda: TransformerEncoder(width=9, heads=3), "it must be even"),
        (lambda: GRU(vocabulary=3, padding=3), "padding is 3.*below the vocabulary of 3"),
        (lambda: GRU(vocabulary=3)(torch.rand(2, 3)), r"takes token ids"),
        (lambda: GRU()(torch.zeros(2, 3, dtype=torch.int64)), r"set vocabulary to their number"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

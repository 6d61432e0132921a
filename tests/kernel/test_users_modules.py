"""Networks of users' own: right to rounding beside a plain loop over their module, or told."""

from __future__ import annotations

import copy
import importlib
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import make_batch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.hypergrad import Reptile, Strategy, Unroll
from fewshot_blo.kernel import SGD, Backend, InnerSteps
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
from fewshot_blo.training.step import dropout_keys, hypergradient

RULE = SGD(0.1)

# Some of these networks do, and ``test_row_check`` tells.
pytestmark = pytest.mark.filterwarnings("ignore:.* mixes the rows of a batch")


def loop(network: nn.Module, batch: TaskBatch, *, steps: int, second: bool) -> dict[str, Tensor]:
    """F and the gradient of unrolled steps: PyTorch alone, the module as it is, task by task.

    Every forward pass starts from the buffers that the module has now.
    """
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        buffers = {n: b.clone() for n, b in network.named_buffers()}
        logits = functional_call(network, {**params, **buffers}, (x.clone(),))
        return F.cross_entropy(logits, y)

    losses = []
    for t in range(batch.tasks):
        params = dict(theta)
        for _ in range(steps):
            inner = loss(params, batch.support_x[t], batch.support_y[t])
            leaves = list(params.values())
            g = torch.autograd.grad(inner, leaves, create_graph=second, materialize_grads=True)
            params = {n: p - 0.1 * d for (n, p), d in zip(params.items(), g, strict=True)}
        losses.append(loss(params, batch.query_x[t], batch.query_y[t]))
    total = torch.stack(losses)
    gradients = torch.autograd.grad(total.mean(), list(theta.values()), materialize_grads=True)
    return {"F": total.detach(), **dict(zip(theta, gradients, strict=True))}


def ours(
    problem: Initialization | SharedEncoder,
    batch: TaskBatch,
    *,
    steps: int = 2,
    second: bool = True,
    chunk: int = 0,
    recompute: bool = False,
) -> dict[str, Tensor]:
    strategy = Unroll(
        InnerSteps(steps, RULE), first_order=not second, recompute=recompute and second
    )
    step = hypergradient(
        problem, strategy, strategy.init(), batch, chunk=chunk, keys=dropout_keys(batch, 0, 0)
    )
    return {"F": step.outer_loss, **step.gradient}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    scale = max(float(p.norm()) for p in expected.values())
    for name, p in expected.items():
        assert float((found[name] - p).norm()) <= 1e-10 * max(float(p.norm()), 1e-3 * scale), name


class Scaled(nn.BatchNorm2d):
    """A batch norm with a parameter and a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.tanh(super().forward(x))


class HalfDropout(nn.Dropout):
    """A dropout that drops nothing, as its owner wants it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Convolution(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Functional(nn.Module):
    """Batch norm without a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class Tokens(nn.Module):
    """An embedding of the grey levels of an image, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6, padding_idx=0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        levels = (40 * x.flatten(1).abs()).long() % 4
        output: Tensor = self.head(self.embedding(levels).tanh().mean(1))
        return output


class Moving(nn.Module):
    """Divides by a moving average that its forward pass updates."""

    mean: Tensor

    def __init__(self, *, assigned: bool) -> None:
        super().__init__()
        self.assigned = assigned
        self.register_buffer("mean", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        new = 0.9 * self.mean + 0.1 * x.detach().abs().mean()
        if self.assigned:
            self.mean = new
        else:
            self.mean.copy_(new)
        return x / self.mean


class Tracking(nn.Module):
    """Keeps a statistic of its input as an attribute, and uses the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.ones((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = x / (1 + self.last)
        self.last = x.detach().abs().mean()
        return x


class OwnForward(nn.Module):
    """A convolution whose forward is another one, on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, stride=2)
        self.convolution.forward = types.MethodType(  # type: ignore[method-assign]
            lambda self, x: 2 * nn.Conv2d.forward(self, x), self.convolution
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.convolution(x)
        return output


def hooked(hook: Callable[[nn.Module], Any]) -> nn.Module:
    norm = nn.BatchNorm2d(4)
    hook(norm)
    return norm


def tripled(gradients: Any) -> Any:
    return tuple(3 * g for g in gradients)


def image_network(middle: nn.Module, first: nn.Module | None = None) -> nn.Module:
    first = first or nn.Conv2d(1, 4, 3, stride=2)
    return nn.Sequential(first, middle, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm's batch norm with an activation": lambda: image_network(timm_norm(4)),
    "a batch norm of one's own": lambda: image_network(Scaled(4)),
    "a dropout of one's own": lambda: image_network(HalfDropout(0.3)),
    "a convolution of one's own": lambda: image_network(
        nn.BatchNorm2d(4), Convolution(1, 4, 3, stride=2)
    ),
    "a forward of the instance": lambda: image_network(nn.BatchNorm2d(4), OwnForward()),
    "batch norm by function": lambda: image_network(Functional()),
    "padded embedding": Tokens,
    "buffer changed in place": lambda: image_network(Moving(assigned=False)),
    "buffer assigned": lambda: image_network(Moving(assigned=True)),
    "spectral norm": lambda: image_network(
        nn.ReLU(), parametrizations.spectral_norm(nn.Conv2d(1, 4, 3, stride=2))
    ),
    "weight norm": lambda: image_network(
        nn.ReLU(), parametrizations.weight_norm(nn.Conv2d(1, 4, 3, stride=2))
    ),
    "old-style weight norm": lambda: image_network(
        nn.ReLU(), old_weight_norm(nn.Conv2d(1, 4, 3, stride=2))
    ),
    "instance norm that counts": lambda: image_network(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "forward hook": lambda: image_network(
        hooked(lambda m: m.register_forward_hook(lambda m, i, o: 2 * o))
    ),
    "forward pre-hook": lambda: image_network(
        hooked(lambda m: m.register_forward_pre_hook(lambda m, i: (i[0].tanh(),)))
    ),
    "backward hook": lambda: image_network(
        hooked(lambda m: m.register_full_backward_hook(lambda m, i, o: tripled(i)))
    ),
    "backward pre-hook": lambda: image_network(
        hooked(lambda m: m.register_full_backward_pre_hook(lambda m, o: tripled(o)))
    ),
}


def timm_norm(channels: int) -> nn.Module:
    torchvision_module()
    return importlib.import_module("timm.layers").BatchNormAct2d(channels)  # type: ignore


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


NOT_BATCHED = ("padded embedding", "spectral norm", "backward hook", "backward pre-hook")


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


@pytest.mark.filterwarnings("ignore:.*forward pass of|.*one after another:UserWarning")
@pytest.mark.parametrize("second", [True, False], ids=["second order", "first order"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_a_plain_loop_over_the_module(name: str, second: bool) -> None:
    network, batch = make(name), make_batch()
    expected = loop(network, batch, steps=2, second=second)
    problem = Initialization(network)
    problem.prepare(batch)
    for chunk in (0, 1, 2):
        assert_close(ours(problem, batch, second=second, chunk=chunk), expected)
    assert_close(ours(problem, batch, second=second, recompute=True), expected)
    assert_close(loop(network, batch, steps=2, second=second), expected)  # It is left as it was.


@pytest.mark.filterwarnings("ignore:.*forward pass of|.*one after another:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["loop", "batched"])
def test_a_backend_that_is_asked_for_is_right_or_refused(name: str, backend: Backend) -> None:
    network, batch = make(name), make_batch()
    problem = Initialization(network, backend=backend)
    if backend == "batched" and name in NOT_BATCHED:
        with pytest.raises(ConfigurationError, match=r"backend is batched, and .*: use auto"):
            problem.prepare(batch)
        return
    problem.prepare(batch)
    assert_close(ours(problem, batch), loop(network, batch, steps=2, second=True))


class Tied(nn.Module):
    """A layer with two names, and a weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 1, 3, padding=1)
        self.two, self.three = self.one, nn.Conv2d(1, 1, 3, padding=1)
        self.three.weight = self.one.weight
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.three(self.two(self.one(x).tanh()).tanh()).flatten(1))
        return output


class WrittenOut(nn.Module):
    """The same with its tensors handed over by hand."""

    def __init__(self, tied: Tied) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([p.detach() for p in tied.parameters()])

    def forward(self, x: Tensor) -> Tensor:
        weight, first, third, head, bias = self.tensors
        for b in (first, first, third):
            x = F.conv2d(x, weight, b, padding=1)
            x = x if b is third else x.tanh()
        return F.linear(x.flatten(1), head, bias)


@pytest.mark.parametrize("backend", ["loop", "batched", "reference"])
def test_tied_layers_and_weights(backend: Backend) -> None:
    torch.manual_seed(0)
    network, batch = Tied().double(), make_batch()
    expected = loop(WrittenOut(network), batch, steps=2, second=True)
    problem = Initialization(network, backend=backend)
    problem.prepare(batch)
    for _ in range(2):
        found = ours(problem, batch)
        assert_close(dict(zip(expected, found.values(), strict=True)), expected)
    assert all(isinstance(p, nn.Parameter) for p in problem.network.parameters())


def test_an_attribute_that_the_forward_assigns_starts_afresh() -> None:
    network, batch = image_network(Tracking()).double(), make_batch()
    problem = Initialization(network)
    with pytest.warns(UserWarning, match=r"forward pass of Sequential modifies '1\.last'"):
        problem.prepare(batch)
    first = ours(problem, batch)
    assert_close(ours(problem, batch, chunk=1, recompute=True), first)
    tracking = problem.network.get_submodule("1")
    assert float(tracking.last) == 1.0  # type: ignore[arg-type]


def test_buffers_that_change_are_told() -> None:
    network = image_network(Moving(assigned=False)).double()
    with pytest.warns(UserWarning, match=r"modifies '1\.mean': every pass starts from"):
        Initialization(network).prepare(make_batch())


def test_a_wrong_batching_rule_is_named() -> None:
    problem = Initialization(make("padded embedding"))
    with pytest.warns(
        UserWarning, match=r"Tokens differs .* batched \(relative error .*'embedding\.weight'"
    ):
        problem.prepare(make_batch())
    assert problem.backend == "loop"


class Counts(nn.Module):
    """Remembers its calls in a way that nobody can put back."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x * self.calls[0]


class Shuffles(nn.Module):
    """Draws a permutation."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, torch.randperm(x.shape[2])]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Counts(), r"'1' \(Counts\) gives different outputs .* it keeps a state"),
        (Shuffles(), r"'1' \(Shuffles\) gives different outputs .* it draws random numbers"),
    ],
)
def test_what_is_no_function_is_named(layer: nn.Module, message: str) -> None:
    network, batch = image_network(layer).double(), make_batch()
    with pytest.raises(ConfigurationError, match=message):
        Initialization(network).prepare(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a network that cannot be batched.
        Initialization(network, prove=False).prepare(batch)


class Blocks(nn.Module):
    """A block of one's own under activation checkpointing."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh())
        self.head = nn.Linear(4 * 49, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        output: Tensor = self.head(x.flatten(1))
        return output


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", ["auto", "loop", "batched"])
def test_activation_checkpointing_is_refused_with_its_remedy(reentrant: bool, backend: Any) -> None:
    problem = Initialization(Blocks(reentrant=reentrant).double(), backend=backend)
    with pytest.raises(ConfigurationError, match=r"activation checkpointing.*turn it off"):
        problem.prepare(make_batch())


@pytest.mark.parametrize("backend", ["loop", "batched"])
def test_checkpointing_is_refused_without_a_proof_too(backend: Backend) -> None:
    problem = Initialization(Blocks(reentrant=False).double(), backend=backend, prove=False)
    with pytest.raises(ConfigurationError, match=r"activation checkpointing.*turn it off"):
        ours(problem, make_batch())


class Dropping(nn.Module):
    """Random functions without layers."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x)


def attend(x: Tensor) -> Tensor:
    rows = x.flatten(2)
    return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.3).reshape(x.shape)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout2d": lambda x: F.dropout2d(x, 0.4),
    "alpha": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "feature alpha": lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
    "rrelu": lambda x: F.rrelu(x, training=True).abs(),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn": lambda x: x + torch.randn(x.shape[1:], dtype=x.dtype),
    "bernoulli_": lambda x: x * x.new_empty(x.shape).bernoulli_(0.7),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.7)),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "exponential_": lambda x: x * torch.empty_like(x).exponential_(2.0),
    "fractional": lambda x: F.interpolate(F.fractional_max_pool2d(x, 2, output_size=4), size=7),
    "attention": attend,
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
}


@pytest.mark.filterwarnings("ignore:.*one after another:UserWarning")
@pytest.mark.parametrize("name", DRAWS)
def test_random_functions_depend_on_the_key_alone(name: str) -> None:
    torch.manual_seed(0)
    network = image_network(Dropping(DRAWS[name])).double()
    batch = make_batch()
    problem = Initialization(network)
    problem.prepare(batch)
    first = ours(problem, batch)
    assert_close(ours(problem, batch, chunk=1), first)
    assert_close(ours(problem, batch, recompute=True, chunk=2), first)
    for backend in ("loop", "reference"):
        problem.backend = backend
        assert_close(ours(problem, batch), first)
    strategy = Unroll(InnerSteps(2, RULE))
    keys = dropout_keys(batch, 1, 0)
    other = hypergradient(problem, strategy, strategy.init(), batch, keys=keys)
    assert not torch.allclose(other.outer_loss, first["F"])


def test_attention_with_dropout() -> None:
    """Of PyTorch's own layers, whose function is made of random ones."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 8, dropout=0.3, batch_first=True)

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.layer(x.squeeze(1)).mean(1))
            return output

    batch = make_batch()
    problem = Initialization(Rows().double())
    problem.prepare(batch)
    first = ours(problem, batch)
    assert_close(ours(problem, batch, chunk=1), first)
    problem.backend = "reference"
    assert_close(ours(problem, batch), first)


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


@pytest.mark.parametrize(
    "strategy", [Unroll(InnerSteps(2, RULE), first_order=True), Reptile(InnerSteps(2, RULE))]
)
def test_first_order_methods_need_no_second_derivatives(strategy: Strategy) -> None:
    network, batch = image_network(HardSigmoid()).double(), make_batch()
    problem = Initialization(network)
    problem.prepare(batch, derivatives=strategy.derivatives)
    found = ours(problem, batch, second=False)
    assert_close(found, loop(network, batch, steps=2, second=False))
    with pytest.raises(ConfigurationError, match=r"no second derivative.*hardsigmoid.*first_order"):
        problem.prepare(batch)


class Several(nn.Module):
    """A network with another output than a tensor."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.pack = nn.Linear(256, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.head(x.flatten(1)))


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda x: {"logits": x, "loss": None}, "returns a dict with 'logits', 'loss'"),
        (lambda x: (x, x), "returns a tuple of 2"),
        (lambda x: None, "returns a NoneType"),
    ],
)
@pytest.mark.parametrize("make_problem", [Initialization, SharedEncoder])
def test_other_outputs_than_a_tensor(make_problem: Any, pack: Any, message: str) -> None:
    problem = make_problem(Several(pack).double())
    with pytest.raises(ConfigurationError, match=f"{message}: it must return one tensor"):
        problem.prepare(make_batch())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A FutureWarning from PyTorch 2.14 on.
        return torch.jit.script(nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            r"'0\.weight' .* is uninitialized: run one batch",
        ),
        (lambda: nn.DataParallel(nn.Linear(4, 2)), "is a DataParallel.*network.module"),
        (lambda: nn.Sequential(scripted()), r"'0' of the network is compiled by torch\.jit"),
        (lambda: nn.Linear(4, 2, dtype=torch.complex64), "'weight' .* is torch.complex64.*real"),
        (lambda: nn.Sequential(nn.Embedding(4, 2, sparse=True)), r"'0' .* sparse=False"),
    ],
)
def test_networks_that_cannot_be_used(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Initialization(network())


def test_parameters_that_the_forward_changes() -> None:
    class Renormalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 6, max_norm=0.1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.embedding((40 * x.flatten(1).abs()).long() % 4).mean(1))
            return output

    for backend in ("auto", "loop", "batched"):
        problem = Initialization(Renormalised().double(), backend=backend)
        with pytest.raises(ConfigurationError, match=r"parameter 'embedding\.weight' in place"):
            problem.prepare(make_batch())


class Counter(nn.Module):
    """Counts its calls, and uses the count."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


def test_a_count_starts_afresh() -> None:
    problem, batch = Initialization(image_network(Counter()).double()), make_batch()
    with pytest.warns(UserWarning, match=r"modifies '1\.calls': every pass starts"):
        problem.prepare(batch)
    assert_close(ours(problem, batch, chunk=1, recompute=True), ours(problem, batch))


def test_warnings_name_the_users_class() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else 2 * x

    problem = Initialization(image_network(Branching()).double())
    with pytest.warns(UserWarning, match=r"^Sequential cannot be batched .*\.item\(\)"):
        problem.prepare(make_batch())


class OwnBatchNorm(nn.Module):
    """Normalises by the batch's statistics without a layer of PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True).flatten(1)


@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
@pytest.mark.parametrize("kind", ["encoder", "initialization"])
def test_a_batch_norm_of_ones_own_has_no_statistics_of_the_support_set(
    kind: str, backend: Backend
) -> None:
    batch = make_batch(tasks=2)
    network = nn.Sequential(OwnBatchNorm(), nn.Linear(batch.support_x[0, 0].numel(), 5)).double()
    problem: Any = (
        SharedEncoder(network, backend=backend)
        if kind == "encoder"
        else Initialization(network, backend=backend)
    )
    bound = problem.bind(batch, "transductive")
    assert bound.query_outputs(bound.bilevel.inner_init).isfinite().all()

    def in_support_mode() -> None:
        bound = problem.bind(batch, "support")
        bound.query_outputs(bound.bilevel.inner_init)

    with pytest.raises(ConfigurationError, match=r"F\.batch_norm .* outside of PyTorch's"):
        in_support_mode()


def test_embedding_needs_images_that_do_not_meet() -> None:
    with pytest.raises(ConfigurationError, match=r"F\.batch_norm"):
        embed(OwnBatchNorm(), torch.rand(4, 1, 3, 3))


def test_preparing_leaves_random_state_and_buffers_alone() -> None:
    network = image_network(nn.Sequential(Moving(assigned=False), nn.BatchNorm2d(4))).double()
    problem = Initialization(network)
    before = copy.deepcopy((network.state_dict(), problem.network.state_dict()))
    torch.manual_seed(7)
    with pytest.warns(UserWarning, match="every pass starts"):
        problem.prepare(make_batch())
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(7)))
    for state, now in zip(
        before, (network.state_dict(), problem.network.state_dict()), strict=True
    ):
        assert all(torch.equal(state[name], p) for name, p in now.items())


def test_a_wrong_kernel_layer_is_given_back_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewshot_blo.kernel import conversion

    def wrong(self: nn.Conv2d, x: Tensor) -> Tensor:
        return 1.001 * nn.Conv2d.forward(self, x)

    monkeypatch.setattr(conversion.Conv2d, "forward", wrong)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=4), nn.Flatten(), nn.Linear(32, 3)).double()
    batch, problem = make_batch(), Initialization(network)
    with pytest.warns(UserWarning, match="computed by PyTorch's own operations in '', '0'"):
        problem.prepare(batch)
    assert_close(ours(problem, batch), loop(network, batch, steps=2, second=True))


class WritesSometimes(nn.Module):
    """Doubles a buffer in passes of some values, or of some numbers of rows."""

    scale: Tensor

    def __init__(self, when: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.when = when
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.when(x):
            self.scale.mul_(2)
        return x * self.scale


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_a_buffer_that_few_tasks_write_to_starts_afresh(backend: Any) -> None:
    batch = make_batch()
    batch.support_x[-1] += 9
    network = image_network(WritesSometimes(lambda x: float(x.abs().mean()) > 1)).double()
    problem = Initialization(network, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a network that cannot be batched.
        problem.prepare(batch)
    assert problem.backend == "loop"
    expected = loop(network, batch, steps=1, second=True)
    for _ in range(2):
        assert_close(ours(problem, batch, steps=1), expected)
    assert float(problem.network.get_buffer("1.scale")) == 1


@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
def test_a_buffer_that_query_passes_alone_write_to_starts_afresh(backend: Backend) -> None:
    batch = make_batch(query=3)
    rows = batch.query_y.shape[1]
    network = image_network(WritesSometimes(lambda x: len(x) == rows)).double()
    problem = Initialization(network, backend=backend, prove=False)
    expected = loop(network, batch, steps=2, second=True)
    for _ in range(2):
        assert_close(ours(problem, batch), expected)
    assert float(problem.network.get_buffer("1.scale")) == 1


class CountsByHand(nn.BatchNorm2d):
    """A batch norm whose own forward writes to its running mean."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        self.running_mean.add_(1)
        return x / self.running_mean.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
def test_a_batch_norm_with_a_forward_of_its_own_starts_afresh(backend: Backend) -> None:
    batch, network = make_batch(), image_network(CountsByHand(4, affine=False)).double()
    problem = Initialization(network, backend=backend, prove=False)
    expected = loop(network, batch, steps=2, second=True)
    for _ in range(2):
        assert_close(ours(problem, batch), expected)


class SetByData(nn.Module):
    """Shifts by a parameter that its first pass sets, as ActNorm does."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4, 1, 1), requires_grad=not frozen)
        self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.shift.data.copy_(-x.mean((0, 2, 3)).reshape(-1, 1, 1))
            self.done = True
        return x + self.shift


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", ["auto", "loop", "batched"])
def test_a_parameter_that_is_set_through_its_data_is_named(backend: Any, frozen: bool) -> None:
    network = image_network(SetByData(frozen=frozen)).double()
    problem = Initialization(network, backend=backend)
    with pytest.raises(ConfigurationError, match=r"parameter '1\.shift' through \.data: .*before"):
        problem.prepare(make_batch())
    assert not problem.network.get_parameter("1.shift").any()


class Halves(nn.Module):
    """Writes to a parameter, in queries of a task alone."""

    def __init__(self, rows: int, *, frozen: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=not frozen)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == self.rows:
            with torch.no_grad():
                self.gain.div_(2)
        return x * self.gain


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
def test_a_parameter_that_later_passes_write_to_is_named(backend: Backend, frozen: bool) -> None:
    batch = make_batch(query=3)
    network = image_network(Halves(batch.query_y.shape[1], frozen=frozen)).double()
    with pytest.raises(ConfigurationError, match=r"parameter '1\.gain' in place"):
        ours(Initialization(network, adapted="4", backend=backend, prove=False), batch)


class Shifts(nn.Module):
    """Writes to its input."""

    def __init__(self, when: Callable[[Tensor], bool] = lambda x: True) -> None:
        super().__init__()
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        if self.when(x):
            x -= 0.5
        return x


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("prove", [False, True])
@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
@pytest.mark.parametrize("first", [Shifts(), nn.ReLU(inplace=True)], ids=["-=", "ReLU"])
def test_a_first_layer_that_works_in_place(
    first: nn.Module, backend: Backend, prove: bool, recompute: bool
) -> None:
    batch = make_batch(tasks=2)
    batch.support_x.sub_(0.5)
    network = image_network(nn.Identity(), nn.Sequential(first, nn.Conv2d(1, 4, 3, stride=2)))
    network = network.double()
    problem = Initialization(network, backend=backend, prove=prove)
    before = {name: x.clone() for name, x in batch.flat.items()}
    expected = loop(network, batch, steps=1, second=True)
    problem.prepare(batch)
    for _ in range(2):
        assert_close(ours(problem, batch, steps=1, recompute=recompute), expected)
    assert all(torch.equal(x, before[name]) for name, x in batch.flat.items())


def test_an_input_that_few_passes_write_to_is_told() -> None:
    batch = make_batch()
    batch.support_x[-1] += 9
    few = Shifts(lambda x: float(x.mean()) > 4)
    network = image_network(nn.Identity(), nn.Sequential(few, nn.Conv2d(1, 4, 3, stride=2)))
    with pytest.raises(ConfigurationError, match="writes to its input, which the first pass"):
        ours(Initialization(network.double(), backend="loop", prove=False), batch)


def test_embedding_leaves_examples_and_buffers_alone() -> None:
    network = nn.Sequential(Shifts(), WritesSometimes(lambda x: True), nn.Flatten())
    examples = torch.rand(4, 1, 3, 3)
    before = examples.clone()
    for _ in range(2):
        torch.testing.assert_close(embed(network, examples), 2 * (before - 0.5).flatten(1))
    assert torch.equal(examples, before)

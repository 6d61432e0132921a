"""Independent ways to the same numbers: closed forms, finite differences and plain loops.

The plain loops know one task: no task axis, no vmap, no padding, and PyTorch's own layers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.heads import Head
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import StepwiseBatchNorm
from fewshot_blo.kernel.adapt import at_step, inner_step
from fewshot_blo.kernel.layers import TorchBatchNorm
from fewshot_blo.problems import NormMode
from fewshot_blo.tasks import TaskBatch


def assert_same(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], relative: float = 1e-10
) -> None:
    """Equal up to ``relative`` of the largest entry of all tensors together."""
    assert list(actual) == list(expected)
    scale = max(float(p.abs().max()) for p in expected.values())
    for name, p in expected.items():
        assert actual[name].shape == p.shape, name
        error = float((actual[name] - p).abs().max())
        assert error <= relative * scale, f"{name}: {error / scale:.1e}"


def assert_each_same(
    actual: Sequence[Tensor], expected: Sequence[Tensor], relative: float = 1e-9, scale: float = 0.0
) -> None:
    """Entries equal up to ``relative``, or 1e-10 of their tensor's largest (at least ``scale``)."""
    for ours, theirs in zip(actual, expected, strict=True):
        largest = max(float(theirs.detach().abs().max()), scale)
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=1e-10 * largest)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def derivatives(output: Tensor, leaves: Sequence[Tensor], order: int) -> list[Tensor]:
    """Of a curved function of the output, then of the squared norm of those, and so on."""
    value = output.sin().sum()
    results: list[Tensor] = []
    for _ in range(order):
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        results += gradients
        value = torch.stack([g.square().sum() for g in gradients]).sum()
    return results


def directional_difference(
    function: Callable[[Params], Tensor], at: Params, direction: Params, step: float = 1e-4
) -> float:
    """Derivative of a scalar function along a direction, by the five-point formula."""

    def value(length: float) -> float:
        moved = {n: (p.detach() + length * direction[n]).requires_grad_() for n, p in at.items()}
        return float(function(moved).detach())

    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8 * near - far) / (12 * step)


def random_direction(like: Params, seed: int = 0) -> dict[str, Tensor]:
    """A direction with entries of either sign."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in like.items()
    }


def dot(a: Params, b: Params) -> float:
    """Inner product of all tensors."""
    return float(torch.stack([(a[name] * b[name]).sum() for name in b]).sum())


@dataclass(frozen=True)
class Quadratic:
    """``G_t = v'A_t v/2 - v'(B_t u + c_t)`` and ``F_t = |v - d_t|²/2 + r |u|²/2``.

    The parameters of a task are cut in two tensors, one of them a scalar, so that strategies
    meet several shapes.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    r: float
    u: Tensor

    @classmethod
    def random(cls, tasks: int = 3, inner: int = 5, outer: int = 4, seed: int = 0) -> Quadratic:
        """Eigenvalues of A between 1 and 4."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        basis = torch.linalg.qr(normal(tasks, inner, inner))[0]
        eigenvalues = torch.linspace(1, 4, inner, dtype=torch.float64)
        a = basis @ torch.diag(eigenvalues) @ basis.transpose(1, 2)
        b, c, d = normal(tasks, inner, outer), normal(tasks, inner), normal(tasks, inner)
        return cls(a, b, c, d, 0.3, normal(outer).requires_grad_())

    def bilevel(self, start: Tensor | None = None) -> Bilevel:
        """The problem, from ``start`` ``[T, inner]`` or zero."""

        def inner_loss(v: TaskParams) -> Tensor:
            x = self.join(v)
            curved = 0.5 * torch.einsum("ti,tij,tj->t", x, self.a, x)
            return curved - (x * (self.b @ self.u + self.c)).sum(1)

        def outer_loss(v: TaskParams) -> Tensor:
            return 0.5 * (self.join(v) - self.d).square().sum(1) + 0.5 * self.r * self.u @ self.u

        start = torch.zeros_like(self.c) if start is None else start
        return Bilevel({"u": self.u}, self.cut(start), inner_loss, outer_loss)

    def minimiser(self) -> Tensor:
        """argmin of G, ``[T, inner]``."""
        v: Tensor = torch.linalg.solve(self.a, self.b @ self.u.detach() + self.c)
        return v

    def hypergradient(self, v: Tensor, q: Tensor) -> Tensor:
        """``mean_t F_u - G_uv q`` at v, for a solution q of ``A q = F_v``."""
        return self.r * self.u.detach() + torch.einsum("tio,ti->o", self.b, q) / len(q)

    def exact(self) -> Tensor:
        """The hypergradient at the minimisers."""
        v = self.minimiser()
        return self.hypergradient(v, torch.linalg.solve(self.a, v - self.d))

    def descent(self, steps: int, step_size: float) -> tuple[Tensor, Tensor]:
        """v after gradient descent from zero, and the hypergradient through the descent."""
        identity = torch.eye(self.a.shape[1], dtype=torch.float64)
        contraction = identity - step_size * self.a
        series = torch.zeros_like(self.a)
        for power in range(steps):
            series = series + step_size * torch.linalg.matrix_power(contraction, power)
        v = torch.einsum("tij,tj->ti", series, self.b @ self.u.detach() + self.c)
        return v, self.hypergradient(v, torch.einsum("tij,tj->ti", series, v - self.d))

    @staticmethod
    def cut(x: Tensor) -> TaskParams:
        """``[T, inner]`` as named parameters."""
        return {"scalar": x[:, 0], "rest": x[:, 1:]}

    @staticmethod
    def join(v: TaskParams) -> Tensor:
        """Named parameters as ``[T, inner]``."""
        return torch.cat([v["scalar"].unsqueeze(1), v["rest"]], 1)


def make_batch(
    tasks: int = 3, way: int = 3, shot: int = 2, query: int = 2, *, size: int = 16, seed: int = 0
) -> TaskBatch:
    """Tasks of random images, float64."""
    generator = torch.Generator().manual_seed(seed)

    def images(rows: int) -> Tensor:
        return torch.rand(tasks, rows, 1, size, size, generator=generator, dtype=torch.float64)

    labels = torch.arange(way).expand(tasks, way)
    return TaskBatch(
        images(way * shot),
        labels.repeat_interleave(shot, 1),
        images(way * query),
        labels.repeat_interleave(query, 1),
        torch.arange(tasks * way).reshape(tasks, way),
    )


def make_ragged_batch(seed: int = 0) -> TaskBatch:
    """Tasks of 3, 2 and 3 ways, 2, 1 and 1 shots, 2, 2 and 1 queries, padded to the largest."""
    batch = make_batch(3, 3, 2, 2, seed=seed)
    way, shot, query = torch.tensor([3, 2, 3]), torch.tensor([2, 1, 1]), torch.tensor([2, 2, 1])
    in_way = torch.arange(3) < way[:, None]
    support = (in_way[:, :, None] & (torch.arange(2) < shot[:, None, None])).flatten(1)
    queries = (in_way[:, :, None] & (torch.arange(2) < query[:, None, None])).flatten(1)
    return TaskBatch(
        batch.support_x * support[:, :, None, None, None],
        batch.support_y.masked_fill(~support, -1),
        batch.query_x * queries[:, :, None, None, None],
        batch.query_y.masked_fill(~queries, -1),
        batch.classes.masked_fill(~in_way, -1),
    )


def single_tasks(batch: TaskBatch) -> list[TaskBatch]:
    """Each task as a batch of its own, without padding."""
    singles = []
    for t in range(batch.tasks):
        support, query, way = batch.support_y[t] >= 0, batch.query_y[t] >= 0, batch.classes[t] >= 0
        singles.append(
            TaskBatch(
                batch.support_x[t : t + 1, support],
                batch.support_y[t : t + 1, support],
                batch.query_x[t : t + 1, query],
                batch.query_y[t : t + 1, query],
                batch.classes[t : t + 1, way],
            )
        )
    return singles


class PlainBatchNorm(nn.Module):
    """Batch norm by means and variances over the first ``rows`` images, or all of them."""

    rows: int | None = None

    def __init__(self, norm: TorchBatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.stepwise = isinstance(norm, StepwiseBatchNorm)

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        assert self.bias is not None
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.stepwise:
            step = inner_step()
            row = len(weight) - 1 if step is None else min(step, len(weight) - 1)
            weight, bias = weight[row], bias[row]
        source = x[: self.rows]
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        variance, mean = torch.var_mean(source, axes, correction=0, keepdim=True)
        normal = (x - mean) / (variance + self.eps).sqrt()
        return normal * weight.reshape(shape) + bias.reshape(shape)


def plain_network(network: nn.Module) -> nn.Module:
    """A copy of a network whose batch norms are the plain one above."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, TorchBatchNorm):
                setattr(module, name, PlainBatchNorm(child))
    return network


def plain_outputs(
    network: nn.Module, params: Params, support: Tensor, query: Tensor, norm: NormMode
) -> tuple[Tensor, Tensor]:
    """Outputs of one task's support and query images."""
    first: Tensor = functional_call(network, dict(params), (support,))
    if norm == "transductive":
        return first, functional_call(network, dict(params), (query,))
    norms = [module for module in network.modules() if isinstance(module, PlainBatchNorm)]
    for module in norms:
        module.rows = len(support)
    both: Tensor = functional_call(network, dict(params), (torch.cat([support, query]),))
    for module in norms:
        module.rows = None
    return first, both[len(support) :]


def plain_initialization(
    network: nn.Module,
    outer: Params,
    task: TaskBatch,
    norm: NormMode,
    *,
    prox: float,
    adapted: Sequence[str],
    prototypes: bool = False,
) -> Bilevel:
    """The initialisation problem of one task, by calls of a plain network."""
    weights = {n: p for n, p in outer.items() if not n.startswith("step_size/")}
    way = task.way

    def losses(v: TaskParams) -> tuple[Tensor, Tensor]:
        params = {**weights, **{n: p.squeeze(0) for n, p in v.items()}}
        support, query = plain_outputs(network, params, task.support_x[0], task.query_x[0], norm)
        inner = F.cross_entropy(support[:, :way], task.support_y[0])
        for name, origin in begin().items() if prox else ():
            inner = inner + 0.5 * prox * (params[name] - origin).square().sum()
        return inner.reshape(1), F.cross_entropy(query[:, :way], task.query_y[0]).reshape(1)

    def begin() -> dict[str, Tensor]:
        start = {n: outer[n] for n in adapted}
        if not prototypes:
            return start
        encoder = {n[8:]: p for n, p in weights.items() if n.startswith("encoder.")}
        with at_step(0):
            x = functional_call(network.get_submodule("encoder"), encoder, (task.support_x[0],))
        means = torch.stack([x[task.support_y[0] == n].mean(0) for n in range(way)])
        divisor = x.shape[1]
        bias = -(means * means).sum(1) / divisor
        return {**start, "head.weight": 2 * means / divisor, "head.bias": bias}

    start = {n: p.unsqueeze(0) for n, p in begin().items()}
    return Bilevel(outer, start, lambda v: losses(v)[0], lambda v: losses(v)[1])


def plain_linear(v: Params, x: Tensor) -> Tensor:
    """A linear head's logits for one task."""
    return F.linear(x, v["head.weight"], v["head.bias"])


def plain_cosine(v: Params, x: Tensor) -> Tensor:
    """A cosine head's logits for one task."""
    w = v["head.weight"]
    lengths = ((x * x).sum(1) + 1e-12).sqrt().outer(((w * w).sum(1) + 1e-12).sqrt())
    return 10 * (x @ w.T) / lengths


@dataclass(frozen=True)
class PlainHead:
    """A head of one task.

    Attributes:
        logits: of parameters and features ``[B, D]``, with the outer variables.
        from_support: parameters by a formula, of features, labels, way and the outer variables.
        loss: of parameters, features and labels; None for cross-entropy.
        scaled: whether features come divided by the square root of their number.
    """

    logits: Callable[[Params, Tensor, Params], Tensor]
    from_support: Callable[[Tensor, Tensor, int, Params], dict[str, Tensor]]
    loss: Callable[[Params, Tensor, Tensor, Params], Tensor] | None = None
    scaled: bool = True


def _means(x: Tensor, labels: Tensor, way: int) -> Tensor:
    return torch.stack([x[labels == n].mean(0) for n in range(way)])


def _linear_prototypes(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
    del outer
    means = _means(x, labels, way)
    return {"head.weight": 2 * means, "head.bias": -(means * means).sum(1)}


def _ridge_solution(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
    """The normal equations, of the size of the features."""
    lam = outer["head/log_lam"].exp()
    y = F.one_hot(labels, way).to(x.dtype)
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return {"head.weight": y.T @ x @ torch.linalg.inv(x.T @ x + lam * identity)}


def _ridge_loss(v: Params, x: Tensor, labels: Tensor, outer: Params) -> Tensor:
    w = v["head.weight"]
    error = x @ w.T - F.one_hot(labels, len(w)).to(x.dtype)
    return 0.5 * (error * error).sum() + 0.5 * outer["head/log_lam"].exp() * (w * w).sum()


def _attention(v: Params, x: Tensor, outer: Params) -> Tensor:
    """Log of the sum of ``exp(10 cos)`` over each class's rows of the support set."""
    del outer
    support, labels = v["head.support"], v["head.labels"]
    lengths = ((x * x).sum(1) + 1e-12).sqrt().outer(((support * support).sum(1) + 1e-12).sqrt())
    weights = (10 * (x @ support.T) / lengths).exp()
    return (weights @ labels).log()


def _relation(v: Params, x: Tensor, outer: Params) -> Tensor:
    """Each query's maps side by side with a class's through a plain network."""
    own = {n.removeprefix("head/"): p for n, p in outer.items() if n.startswith("head/")}
    weight = torch.cat([own["of_class"], own["of_query"]], 1)
    channels, kernel = own["of_class"].shape[1], weight.shape[-1]
    side = round((x.shape[1] // channels) ** 0.5)

    def block(x: Tensor, number: int) -> Tensor:
        normal = F.layer_norm(x, x.shape[1:])
        gain, shift = (own[f"{name}{number}"][:, None, None] for name in ("gain", "shift"))
        x = (normal * gain + shift).relu()
        return x if x.shape[-1] == 1 else F.max_pool2d(x, 2)

    def score(c: Tensor, query: Tensor) -> Tensor:
        pair = torch.cat([c.reshape(-1, side, side), query.reshape(-1, side, side)])[None]
        first = block(F.conv2d(pair, weight, padding=kernel // 2), 1)
        second = block(F.conv2d(first, own["second"], padding=own["second"].shape[-1] // 2), 2)
        hidden = F.linear(second.flatten(), own["units"], own["bias"]).relu()
        return (hidden * own["score"]).sum()

    return torch.stack([torch.stack([score(c, query) for c in v["head.weight"]]) for query in x])


def _lstm(outer: Params, name: str, size: int, state: int) -> nn.LSTMCell:
    """PyTorch's cell with weights of the outer variables; its gates are in the same order."""
    cell = nn.LSTMCell(size, state).to(outer[f"head/{name}.bias"].dtype)
    del cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
    cell.weight_ih = outer[f"head/{name}.of_input"]
    cell.weight_hh = outer[f"head/{name}.of_state"]
    cell.bias_ih = outer[f"head/{name}.bias"]  # type: ignore[assignment]
    cell.bias_hh = torch.zeros_like(cell.bias_ih)  # type: ignore[assignment]
    return cell


def _in_context(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
    """Support images with the states of two LSTMs that have read the set up to them."""
    total = x
    for name, order in (("forward", range(len(x))), ("backward", range(len(x) - 1, -1, -1))):
        cell, states = _lstm(outer, name, x.shape[1], x.shape[1]), dict[int, Tensor]()
        state = (torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        for row in order:
            state = cell(x[row], state)
            states[row] = state[0]
        total = total + torch.stack([states[row] for row in range(len(x))])
    return {"head.support": total, "head.labels": F.one_hot(labels, way).to(x.dtype)}


def _read_in_context(v: Params, x: Tensor, outer: Params) -> Tensor:
    """Queries, one by one, that have read the support set twice, attending to it at the end."""
    support, size = v["head.support"], x.shape[1]
    weight_hh = outer["head/query.of_state"]
    queries = []
    for query in x:
        h, c, read = (torch.zeros_like(query) for _ in range(3))
        for _ in range(2):
            # PyTorch's cell wants an output as long as its state: work the gates out in two parts.
            gates = outer["head/query.of_input"] @ query + outer["head/query.bias"]
            gates = gates + weight_hh[:, :size] @ h + weight_hh[:, size:] @ read
            i, f, g, o = torch.split(gates, size)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh() + query
            read = (support @ h).softmax(0) @ support
        queries.append(h)
    return _attention(v, torch.stack(queries), outer)


def _propagation(v: Params, x: Tensor, outer: Params) -> Tensor:
    """The series ``Σ_k α^k S^k Y`` of a graph of 4 neighbours, written edge by edge."""
    rows, labels = torch.cat([v["head.support"], x]), v["head.labels"]
    variance, places = 2 * outer["head/log_sigma"].exp() ** 2, range(len(rows))
    weights = torch.zeros(len(rows), len(rows), dtype=x.dtype)
    near = {}
    for i in places:
        distances = (rows[i] - rows).detach().square().sum(1).tolist()
        near[i] = sorted((j for j in places if j != i), key=distances.__getitem__)[:4]
    for i, j in itertools.product(places, places):
        if j in near[i] or i in near[j]:
            closeness = (-(rows[i] - rows[j]).square().sum() / variance).exp()
            weights = weights.index_put((torch.tensor(i), torch.tensor(j)), closeness)
    scale = (weights.sum(1) + 1e-12).rsqrt()
    graph = scale[:, None] * weights * scale
    term = torch.cat([labels, torch.zeros(len(x), labels.shape[1], dtype=x.dtype)])
    total = term
    for _ in range(400):
        term = 0.9 * graph @ term
        total = total + term
    return (total[len(labels) :] + 1e-12).log()


def _support_itself(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
    del outer
    return {"head.support": x, "head.labels": F.one_hot(labels, way).to(x.dtype)}


def _nothing_to_adapt(v: Params, x: Tensor, labels: Tensor, outer: Params) -> Tensor:
    """Zero, with a path to everything."""
    del labels, outer
    return 0 * v["head.support"].sum() + 0 * x.sum()


PLAIN_HEADS = {
    "linear": PlainHead(lambda v, x, _: plain_linear(v, x), _linear_prototypes),
    "cosine": PlainHead(
        lambda v, x, _: plain_cosine(v, x),
        lambda x, labels, way, _: {"head.weight": _means(x, labels, way)},
    ),
    "ridge": PlainHead(
        lambda v, x, outer: outer["head/log_scale"].exp() * (x @ v["head.weight"].T),
        _ridge_solution,
        _ridge_loss,
    ),
    "matching": PlainHead(
        _attention,
        _support_itself,
        _nothing_to_adapt,
    ),
    "full_context": PlainHead(_read_in_context, _in_context, _nothing_to_adapt),
    "propagation": PlainHead(
        _propagation,
        _support_itself,
        _nothing_to_adapt,
    ),
    "relation": PlainHead(
        _relation, lambda x, labels, way, _: {"head.weight": _means(x, labels, way)}
    ),
}


def _tail(x: Tensor, v: Params, outer: Params) -> Tensor:
    """Layers 0, 1, 3 and 4 of the tail, with the task's parameters where it has its own."""
    p = {name.removeprefix("head/tail."): value for name, value in outer.items()}
    p.update({name.removeprefix("tail."): value for name, value in v.items()})
    x = F.linear(x, p["0.weight"], p["0.bias"])
    x = F.layer_norm(x, x.shape[1:], p["1.weight"], p["1.bias"]).tanh()
    x = F.linear(x, p["3.weight"], p["3.bias"])
    return F.layer_norm(x, x.shape[1:], p["4.weight"], p["4.bias"]) / 2


def _tail_start(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
    start = {f"tail.{name}": outer[f"head/tail.{name}"] for name in ("1.weight", "3.weight")}
    start["tail.3.bias"] = outer["head/tail.3.bias"]
    return {**start, **_linear_prototypes(_tail(x, {}, outer), labels, way, outer)}


PLAIN_HEADS["tail"] = PlainHead(
    lambda v, x, outer: plain_linear(v, _tail(x, v, outer)), _tail_start, scaled=False
)


def itself(head: Head) -> PlainHead:
    """A head without a plain version of its own: itself, for one task at a time.

    This holds it to its independence of the other tasks, chunks and padding, not to a formula.
    """

    def learned(outer: Params) -> dict[str, Tensor]:
        return {n.removeprefix("head/"): p for n, p in outer.items() if n.startswith("head/")}

    def stacked(v: Params) -> TaskParams:
        return {name: p.unsqueeze(0) for name, p in v.items()}

    def support(x: Tensor, labels: Tensor, way: int) -> SupportSet:
        return SupportSet(x[None], labels[None], torch.arange(way)[None])

    def logits(v: Params, x: Tensor, outer: Params) -> Tensor:
        return head.logits(stacked(v), x[None], learned(outer))[0]

    def start(x: Tensor, labels: Tensor, way: int, outer: Params) -> dict[str, Tensor]:
        found = head.from_support(support(x, labels, way), learned(outer))
        return {name: p[0] for name, p in found.items()}

    def loss(v: Params, x: Tensor, labels: Tensor, outer: Params) -> Tensor:
        way = int(labels.max()) + 1
        return head.loss(stacked(v), support(x, labels, way), learned(outer))[0]

    return PlainHead(logits, start, loss, scaled=head.scaled)


def plain_shared_encoder(
    network: nn.Module,
    outer: Params,
    task: TaskBatch,
    norm: NormMode,
    *,
    prox: float,
    start: str,
    head: PlainHead,
    unit: bool = False,
) -> Bilevel:
    """The shared-encoder problem of one task, end to end: no features for leaves."""
    names = ("start/", "head/", "log_prox")
    weights = {n: p for n, p in outer.items() if not n.startswith(names)}
    strength = outer["log_prox"].exp() if "log_prox" in outer else prox
    way, labels = task.way, task.support_y[0]

    def encode() -> tuple[Tensor, Tensor]:
        """Features, divided by the square root of their number."""
        with at_step(None):  # The encoder takes no part in the inner steps.
            outputs = plain_outputs(network, weights, task.support_x[0], task.query_x[0], norm)
        if not head.scaled:
            return outputs
        if unit:
            support, query = (x / ((x * x).sum(1, True) + 1e-12).sqrt() for x in outputs)
        else:
            support, query = (x / math.sqrt(x.shape[1]) for x in outputs)
        return support, query

    def begin() -> dict[str, Tensor]:
        if start == "learned":
            return {n[6:]: p[:way] for n, p in outer.items() if n.startswith("start/")}
        features = encode()[0]
        if start == "zeros":
            shapes = head.from_support(features, labels, way, outer)
            return {n: torch.zeros_like(p) for n, p in shapes.items()}
        return head.from_support(features, labels, way, outer)

    def inner_loss(v: TaskParams) -> Tensor:
        own, features = {n: p.squeeze(0) for n, p in v.items()}, encode()[0]
        if head.loss is None:
            loss = F.cross_entropy(head.logits(own, features, outer), labels)
        else:
            loss = head.loss(own, features, labels, outer)
        if prox:
            for name, origin in begin().items():
                loss = loss + 0.5 * strength * (own[name] - origin).square().sum()
        return loss.reshape(1)

    def outer_loss(v: TaskParams) -> Tensor:
        own = {n: p.squeeze(0) for n, p in v.items()}
        logits = head.logits(own, encode()[1], outer)
        return F.cross_entropy(logits, task.query_y[0]).reshape(1)

    return Bilevel(outer, {n: p.unsqueeze(0) for n, p in begin().items()}, inner_loss, outer_loss)


def plain_mean(strategy: Strategy, problems: Sequence[Bilevel]) -> tuple[Tensor, dict[str, Tensor]]:
    """Outer losses ``[T]`` and the mean hypergradient of single tasks, one after another."""
    steps = [strategy.hypergradient(problem, strategy.init()) for problem in problems]
    losses = torch.cat([step.outer_loss for step in steps])
    return losses, {
        name: torch.stack([step.gradient[name] for step in steps]).mean(0)
        for name in steps[0].gradient
    }


def plain_unroll(
    problems: Sequence[Bilevel], steps: int, step_size: float, *, first_order: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outer losses ``[T]`` and the mean hypergradient through gradient descent, task by task."""
    losses = []
    for problem in problems:
        v = dict(problem.inner_init)
        for _ in range(steps):
            leaves = {
                n: p.view_as(p) if p.requires_grad else p.requires_grad_() for n, p in v.items()
            }
            loss = problem.inner_loss(leaves).sum()
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=not first_order
            )
            v = {n: leaves[n] - step_size * g for n, g in zip(v, gradients, strict=True)}
        losses.append(problem.outer_loss(v))
    outer = problems[0].outer
    total = torch.cat(losses)
    gradients = torch.autograd.grad(total.mean(), list(outer.values()))
    return total.detach(), dict(zip(outer, gradients, strict=True))

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from oracles import PlainBatchNorm
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import (
    BatchNorm,
    Dropout,
    StepwiseBatchNorm,
    TaskForward,
    estimate_statistics,
    for_tasks,
)
from fewshot_blo.kernel.adapt import at_step
from fewshot_blo.kernel.layers import ForwardContext, forward_context
from fewshot_blo.kernel.plain import plain_operations


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def torch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.Module:
    """With parameters and running statistics that are not the default ones."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.data = torch.rand(tensor.shape, generator=generator).double() + 0.5
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4), (6, 4, 5)),
        (nn.BatchNorm2d(4, eps=0.1), (6, 4, 3, 3)),
        (nn.BatchNorm3d(4), (6, 4, 2, 3, 2)),
    ],
)
def test_batch_norm_equals_torch(
    norm: nn.BatchNorm2d, shape: tuple[int, ...], training: bool
) -> None:
    norm = torch_norm(norm).train(training)  # type: ignore[assignment]
    ours = for_tasks(norm)
    assert isinstance(ours, BatchNorm)
    before = {name: p.clone() for name, p in ours.state_dict().items()}
    torch.testing.assert_close(ours(images(*shape)), norm(images(*shape)))
    for name, p in ours.state_dict().items():
        assert torch.equal(p, before[name]), f"{name} changed"


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_by_rows_are_those_of_the_rows(affine: bool) -> None:
    norm = BatchNorm(4, affine=affine).double()
    x, rows = images(5, 4, 3, 3), torch.tensor([1, 0, 1, 1, 0]).bool()
    with forward_context(ForwardContext(rows)):
        out = norm(x)
    reference = nn.BatchNorm2d(4, affine=affine, track_running_stats=False).double()
    torch.testing.assert_close(out[rows], reference(x[rows]))
    variance, mean = torch.var_mean(x[rows], (0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(out, (x - mean) / (variance + 1e-5).sqrt())


def test_all_rows_by_weight_equal_all_rows() -> None:
    norm = torch_norm(nn.BatchNorm2d(4))
    ours, x = for_tasks(norm), images(5, 4, 3, 3)
    with forward_context(ForwardContext(torch.ones(5))):
        torch.testing.assert_close(ours(x), norm.train()(x))
    assert isinstance(ours, BatchNorm)
    torch.testing.assert_close(PlainBatchNorm(ours)(x), norm(x))


def test_running_statistics_are_used_where_asked() -> None:
    norm = torch_norm(nn.BatchNorm2d(4)).eval()
    ours, x = for_tasks(norm).train(), images(2, 5, 4, 3, 3)
    for backend in ("batched", "loop"):
        out = TaskForward(ours, backend)({}, {}, x, running=True)
        torch.testing.assert_close(out, torch.stack([norm(x[0]), norm(x[1])]))


def test_estimated_statistics_are_means_over_batches() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4), nn.ReLU(), BatchNorm(4)).double()
    batches = [images(6, 1, 8, 8), images(8, 1, 8, 8)[2:] * 2]
    estimate_statistics(network, [partial(network, batch) for batch in batches])
    for index in (1, 3):
        inputs = [network[:index](batch) for batch in batches]
        norm = network[index]
        assert isinstance(norm, BatchNorm)
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
        variances = torch.stack([x.var((0, 2, 3), correction=0) for x in inputs])
        torch.testing.assert_close(norm.running_mean, means.mean(0))
        torch.testing.assert_close(norm.running_var, variances.mean(0))
    with pytest.raises(ConfigurationError, match="no passes"):
        estimate_statistics(network, [])


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), torch_norm(nn.BatchNorm2d(4)), nn.Dropout2d(0.3))
    return nn.ModuleDict({"a": inner, "b": nn.ModuleList([nn.Dropout(0.2), nn.BatchNorm1d(3)])})


def test_conversion_keeps_names_values_modes_and_the_original() -> None:
    network = nested().double()
    network["b"][1].eval()  # type: ignore[index]
    network["a"][1].weight.requires_grad_(False)  # type: ignore[index]
    ours = for_tasks(network)
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(BatchNorm) == 2
    assert kinds.count(Dropout) == 2
    assert not any(
        isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout) for m in ours.modules()
    )
    expected = {
        name: p for name, p in network.state_dict().items() if "num_batches_tracked" not in name
    }
    assert list(ours.state_dict()) == list(expected)
    for name, p in ours.state_dict().items():
        assert torch.equal(p, expected[name])
        assert p.dtype == torch.float64
        assert p.data_ptr() != expected[name].data_ptr()
    frozen = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert frozen == ["a.1.weight"]
    assert ours["a"][1].training  # type: ignore[index]
    assert not ours["b"][1].training  # type: ignore[index]
    assert isinstance(network["a"][1], nn.BatchNorm2d)  # type: ignore[index]


def test_layer_with_two_names_stays_one_layer() -> None:
    norm, dropout = nn.BatchNorm1d(4), nn.Dropout()
    ours = for_tasks(nn.Sequential(norm, dropout, nn.Sequential(norm), dropout))
    assert isinstance(ours, nn.Sequential)
    assert isinstance(ours[0], BatchNorm)
    assert ours[0] is ours[2][0]  # type: ignore[index]
    assert isinstance(ours[1], Dropout)
    assert ours[1] is ours[3]


@pytest.mark.parametrize(
    ("layer", "channels"),
    [(nn.Dropout, False), (nn.Dropout1d, True), (nn.Dropout2d, True), (nn.Dropout3d, True)],
)
def test_dropout_variants(layer: type[nn.Dropout], channels: bool) -> None:
    ours = for_tasks(layer(0.25))
    assert isinstance(ours, Dropout)
    with forward_context(ForwardContext(key=torch.tensor(3))):
        out = ours(torch.ones(40, 50, 6))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    rate = float((out == 0).float().mean())
    assert rate == pytest.approx(0.25, abs=0.03 if channels else 0.012)
    assert bool((out == out[:, :, :1]).all()) == channels
    assert torch.equal(ours.eval()(out), out)


def test_dropout_outside_the_kernel_draws_from_the_global_generator() -> None:
    x = torch.ones(1000)[:, None]
    layer = Dropout(0.5)
    assert not torch.equal(layer(x), layer(x))
    with pytest.raises(ConfigurationError, match=r"1\.0"):
        Dropout(1.0)


def test_forward_passes_do_not_leave_a_context_behind() -> None:
    norm = BatchNorm(2).eval()
    x = torch.randn(4, 2)
    with pytest.raises(RuntimeError), forward_context(ForwardContext()):
        raise RuntimeError
    torch.testing.assert_close(norm(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("plain", [True, False])
def test_the_first_rows_are_a_choice_of_rows(plain: bool) -> None:
    network = for_tasks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).double()
    x, rows = images(2, 5, 3, 6, 6), torch.tensor([[1, 1, 0, 0, 0]] * 2).bool()
    forward = TaskForward(network, "batched")
    with plain_operations() if plain else nullcontext():
        first = forward({}, dict(network.named_parameters()), x, rows=2)
        chosen = forward({}, dict(network.named_parameters()), x, rows=rows)
    torch.testing.assert_close(first, chosen)
    parameters = list(network.parameters())
    for a, b in zip(
        torch.autograd.grad(first.sin().sum(), parameters),
        torch.autograd.grad(chosen.sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_stepwise_parameters_are_those_of_the_step_and_then_of_the_last() -> None:
    norm = StepwiseBatchNorm(4, 2).double()
    norm.weight.data = images(2, 4)
    norm.bias.data = images(2, 4) + 1
    network = for_tasks(nn.Sequential(nn.Conv2d(3, 4, 3).double(), norm, nn.ReLU()))
    forward = TaskForward(network, "batched")
    shared, x = dict(network.named_parameters()), images(2, 5, 3, 6, 6)
    for step, row in ((0, 0), (1, 1), (5, 1), (None, 1)):
        plain = copy.deepcopy(network)
        plain[1] = BatchNorm(4).double()
        plain[1].weight.data, plain[1].bias.data = norm.weight.data[row], norm.bias.data[row]
        with nullcontext() if step is None else at_step(step):
            outputs = forward({}, shared, x)
        torch.testing.assert_close(outputs, torch.stack([plain(images) for images in x]))


def test_a_stepwise_norm_needs_steps() -> None:
    with pytest.raises(ConfigurationError, match="0 inner steps: it needs at least 1"):
        StepwiseBatchNorm(4, 0)

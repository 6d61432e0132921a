from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from oracles import PlainBatchNorm
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import StepwiseBatchNorm, TaskForward, estimate_statistics, for_tasks
from fewshot_blo.kernel.adapt import at_step
from fewshot_blo.kernel.interception import following_norms, kernel_forward
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


def in_kernel(network: nn.Module, x: Tensor, context: ForwardContext) -> Tensor:
    """One forward pass with the kernel's meaning."""
    with kernel_forward(context, following_norms(network)):
        output: Tensor = network(x)
    return output


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4), (6, 4, 5)),
        (nn.BatchNorm2d(4, eps=0.1), (6, 4, 3, 3)),
        (nn.BatchNorm3d(4), (6, 4, 2, 3, 2)),
        (nn.SyncBatchNorm(4), (6, 4, 3)),
    ],
)
def test_batch_norm_equals_torch(
    norm: nn.BatchNorm2d, shape: tuple[int, ...], training: bool
) -> None:
    norm = torch_norm(norm).train(training)  # type: ignore[assignment]
    ours = for_tasks(norm)
    before = {name: p.clone() for name, p in ours.state_dict().items()}
    found = in_kernel(ours, images(*shape), ForwardContext(running=not training))
    torch.testing.assert_close(found, norm(images(*shape)))
    for name, p in ours.state_dict().items():
        assert torch.equal(p, before[name]), f"{name} changed"


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_by_rows_are_those_of_the_rows(affine: bool) -> None:
    norm = nn.BatchNorm2d(4, affine=affine).double()
    x, rows = images(5, 4, 3, 3), torch.tensor([1, 0, 1, 1, 0]).bool()
    out = in_kernel(norm, x, ForwardContext(rows))
    reference = nn.BatchNorm2d(4, affine=affine, track_running_stats=False).double()
    torch.testing.assert_close(out[rows], reference(x[rows]))
    variance, mean = torch.var_mean(x[rows], (0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(out, (x - mean) / (variance + 1e-5).sqrt())


def test_all_rows_by_weight_equal_all_rows() -> None:
    norm = torch_norm(nn.BatchNorm2d(4))
    ours, x = for_tasks(norm), images(5, 4, 3, 3)
    found = in_kernel(ours, x, ForwardContext(torch.ones(5)))
    torch.testing.assert_close(found, norm.train()(x))
    assert isinstance(ours, nn.BatchNorm2d)
    torch.testing.assert_close(PlainBatchNorm(ours)(x), norm(x))


def test_running_statistics_are_used_where_asked() -> None:
    norm = torch_norm(nn.BatchNorm2d(4)).eval()
    ours, x = for_tasks(norm).train(), images(2, 5, 4, 3, 3)
    for backend in ("batched", "loop"):
        out = TaskForward(ours, backend)({}, {}, x, running=True)
        torch.testing.assert_close(out, torch.stack([norm(x[0]), norm(x[1])]))


class FreezesItsNorm(nn.Sequential):
    """Keeps its batch norm in evaluation mode, as people do who fine-tune."""

    def train(self, mode: bool = True) -> FreezesItsNorm:
        super().train(mode)
        self[0].eval()
        return self


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_its_owner_freezes_keeps_its_statistics(training: bool) -> None:
    network = FreezesItsNorm(torch_norm(nn.BatchNorm2d(4)), nn.BatchNorm2d(4).double())
    network.train(training)
    x = images(2, 5, 4, 3, 3)
    expected = torch.stack([network.train()(part) for part in x])
    ours = for_tasks(network).train(training)
    modes = [module.training for module in ours.modules()]
    for backend in ("batched", "loop"):
        torch.testing.assert_close(TaskForward(ours, backend)({}, {}, x), expected)
    assert modes == [module.training for module in ours.modules()]


def test_estimated_statistics_are_means_over_batches() -> None:
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    network = for_tasks(nn.Sequential(nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), norms[1])).double()
    assert isinstance(network, nn.Sequential)
    batches = [images(6, 1, 8, 8), images(8, 1, 8, 8)[2:] * 2]
    estimate_statistics(network, [partial(network, batch) for batch in batches])
    for index in (1, 3):
        inputs = [in_kernel(network[:index], batch, ForwardContext()) for batch in batches]
        norm = network[index]
        assert isinstance(norm, nn.BatchNorm2d)
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
    ours_kinds = [type(module).__name__ for module in ours.modules()]
    assert ours_kinds == [type(module).__name__ for module in network.modules()]
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
    assert ours[0] is ours[2][0]  # type: ignore[index]
    assert ours[1] is ours[3]


@pytest.mark.parametrize(
    ("layer", "channels"),
    [(nn.Dropout, False), (nn.Dropout1d, True), (nn.Dropout2d, True), (nn.Dropout3d, True)],
)
def test_dropout_variants(layer: type[nn.Dropout], channels: bool) -> None:
    ours = for_tasks(layer(0.25))
    shape = {nn.Dropout2d: (40, 50, 2, 3), nn.Dropout3d: (40, 50, 1, 2, 3)}.get(layer, (40, 50, 6))
    out = in_kernel(ours, torch.ones(shape), ForwardContext(key=torch.tensor(3))).flatten(2)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    rate = float((out == 0).float().mean())
    assert rate == pytest.approx(0.25, abs=0.03 if channels else 0.012)
    assert bool((out == out[:, :, :1]).all()) == channels
    assert torch.equal(ours.eval()(torch.ones(shape)), torch.ones(shape))
    everything = in_kernel(layer(1.0), torch.ones(shape), ForwardContext(key=torch.tensor(3)))
    assert not everything.any()


def test_forward_passes_do_not_leave_a_context_behind() -> None:
    norm = nn.BatchNorm2d(2).eval()
    x = torch.randn(4, 2, 1, 1)
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
        one = nn.BatchNorm2d(4).double()
        one.weight.data, one.bias.data = norm.weight.data[row], norm.bias.data[row]
        plain.set_submodule("1", one)
        with nullcontext() if step is None else at_step(step):
            outputs = forward({}, shared, x)
        torch.testing.assert_close(outputs, torch.stack([plain(images) for images in x]))


def test_a_stepwise_norm_needs_steps() -> None:
    with pytest.raises(
        ConfigurationError, match="steps is 0: stepwise batch norm needs at least 1"
    ):
        StepwiseBatchNorm(4, 0)
    assert StepwiseBatchNorm(4, 1).weight.shape == (1, 4)

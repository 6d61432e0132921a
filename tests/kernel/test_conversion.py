"""Networks rewritten for tasks compute what they computed before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from oracles import assert_each_same, derivatives, normal
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fewshot_blo.kernel import TaskForward, for_tasks
from fewshot_blo.kernel.conversion import Conv2d, Sequential
from fewshot_blo.kernel.interception import following_norms, kernel_forward
from fewshot_blo.kernel.layers import ForwardContext, StepwiseBatchNorm
from fewshot_blo.kernel.stacked.fused import is_fused, native_kernels


class Views(nn.Module):
    """What users write behind a convolution: it works on contiguous images only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


def block(*rest: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm or nn.BatchNorm2d(4), *rest)


def block_of(channels: int) -> nn.Sequential:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), pool)


RELU = nn.ReLU()
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "block": lambda: block(nn.ReLU(), nn.MaxPool2d(2)),
    "leaky": lambda: block(nn.LeakyReLU(0.2), nn.MaxPool2d((2, 2), stride=2)),
    "negative slope": lambda: block(nn.LeakyReLU(-0.2), nn.MaxPool2d(2)),
    "no ReLU": lambda: block(nn.MaxPool2d(2)),
    "no pooling": lambda: block(nn.ReLU()),
    "norm alone": lambda: block(),
    "no affine map": lambda: block(nn.ReLU(), norm=nn.BatchNorm2d(4, affine=False)),
    "group norm": lambda: block(nn.ReLU(), norm=nn.GroupNorm(2, 4)),
    "instance norm": lambda: block(nn.ReLU(), norm=nn.InstanceNorm2d(4)),
    "other pooling": lambda: block(nn.ReLU(), nn.MaxPool2d(3, padding=1)),
    "ceiling": lambda: block(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
    "overlapping": lambda: block(nn.ReLU(), nn.MaxPool2d(2, stride=1)),
    "average pooling": lambda: block(nn.ReLU(), nn.AvgPool2d(2)),
    "view": lambda: block(nn.ReLU(), nn.MaxPool2d(2), Views()),
    "nested": lambda: nn.Sequential(
        block(nn.ReLU(), nn.MaxPool2d(2)), nn.Sequential(nn.Conv2d(4, 2, 1)), Views()
    ),
    "one module in two places": lambda: nn.Sequential(
        block(RELU), RELU, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), RELU, nn.MaxPool2d(2)
    ),
    "padded to the same size": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding="valid"), nn.BatchNorm2d(4)
    ),
    "reflected": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)
    ),
}


@pytest.fixture(params=[True, False], ids=["with kernels", "without a compiler"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not request.param:
        monkeypatch.setenv("CC", "")
    native_kernels.cache_clear()
    yield
    native_kernels.cache_clear()


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    for p in network.parameters():
        p.data = normal(*p.shape, seed=1)
    return network


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_network_as_written(name: str) -> None:
    network = make(name)
    converted = for_tasks(network)
    assert list(converted.state_dict()) == [
        key for key in network.state_dict() if "num_batches" not in key
    ]
    x = normal(5, 3, 8, 8)
    with kernel_forward(ForwardContext(), following_norms(converted)):
        ours = converted(x)
    theirs = network(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.is_contiguous()
    assert_each_same(
        derivatives(ours, list(converted.parameters()), 2),
        derivatives(theirs, list(network.parameters()), 2),
        scale=1,
    )


@pytest.mark.parametrize(
    "own",
    [
        ("0.0.weight", "1.0.bias"),
        ("1.0.weight", "1.1.weight"),
        ("0.1.weight",),
        ("0.0.bias", "0.1.bias", "1.1.bias"),
        ("0.0.weight", "2.0.weight"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("images_differ", [True, False])
def test_some_parameters_of_a_task_and_others_shared(
    own: tuple[str, ...], images_differ: bool
) -> None:
    """The tasks move between channels and images where shared weights follow own ones."""
    torch.manual_seed(0)
    network = nn.Sequential(*(block_of(c) for c in (3, 4, 4))).double()
    converted = for_tasks(network)
    shared = dict(converted.named_parameters())
    starts = {key: shared.pop(key).detach() for key in own}
    stacked = {key: torch.stack([p * (1 + 0.1 * t) for t in range(3)]) for key, p in starts.items()}
    leaves = [p.requires_grad_() for p in (*stacked.values(), *shared.values())]
    x = normal(3, 5, 3, 8, 8) if images_differ else normal(5, 3, 8, 8)

    def one(params: dict[str, Tensor], x: Tensor) -> Tensor:
        with kernel_forward(ForwardContext(), following_norms(converted)):
            output: Tensor = functional_call(converted, {**shared, **params}, (x,))
        return output

    ours = vmap(one, in_dims=(0, 0 if images_differ else None))(stacked, x)
    rows = []
    for t in range(3):
        params = {**shared, **{key: p[t] for key, p in stacked.items()}}
        image = x[t] if images_differ else x
        rows.append(functional_call(copy.deepcopy(network), params, (image,)))
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2), scale=1)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_tasks_equal_a_loop(name: str) -> None:
    network = make(name)
    converted = for_tasks(network)
    x = normal(3, 5, 3, 8, 8)
    stacked = {
        key: torch.stack([p.detach() + 0.1 * t for t in range(3)])
        for key, p in converted.named_parameters()
    }
    ours = TaskForward(converted, "batched")(stacked, {}, x)
    for t in range(3):
        one = {key: p[t] for key, p in stacked.items()}
        theirs = functional_call(copy.deepcopy(network), one, (x[t],))
        torch.testing.assert_close(ours[t], theirs, rtol=1e-10, atol=1e-10)


def test_a_layer_with_hooks_is_called() -> None:
    converted = for_tasks(make("block"))
    assert isinstance(converted, Sequential)
    assert isinstance(converted[0], Conv2d)
    seen = []
    converted[2].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    converted(normal(5, 3, 8, 8))
    assert seen == [(5, 4, 8, 8)]


def test_layers_take_their_input_by_its_name() -> None:
    x = normal(5, 3, 8, 8)
    for network in (make("block"), nn.Conv2d(3, 4, 3).double(), StepwiseBatchNorm(3, 2).double()):
        converted = for_tasks(network)
        torch.testing.assert_close(converted(input=x), converted(x))


def test_user_classes_stay_as_they_are() -> None:
    class Mine(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return output + 1

    assert type(for_tasks(Mine(nn.Conv2d(3, 4, 3)))) is Mine


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "sh -c 'exit 1' --"])
def test_without_a_compiler_there_is_a_reason(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_kernels.cache_clear()
    try:
        kernels = native_kernels()
        assert not kernels.libraries
        assert kernels.reason
        assert "\n" not in kernels.reason
        assert not is_fused(normal(2, 3, 4, 4))
        assert not list(tmp_path.glob("**/*.so"))
    finally:
        native_kernels.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not native_kernels().libraries, reason="no C compiler")
def test_code_is_loaded_from_a_private_folder_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_kernels.cache_clear()
    try:
        assert native_kernels().libraries
        (folder,) = tmp_path.glob("**/native")
        assert folder.stat().st_mode & 0o077 == 0
        folder.chmod(0o777)
        native_kernels.cache_clear()
        assert "other users can write" in native_kernels().reason
    finally:
        native_kernels.cache_clear()

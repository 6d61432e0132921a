from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recorders import Rerun
from torch import Tensor

from fewshot_blo.kernel import graph
from fewshot_blo.kernel.graph import Graphs, make_graphs


def double(inputs: Any) -> dict[str, Any]:
    return {"sum": inputs["x"] + inputs["y"], "rest": {"twice": 2 * inputs["x"]}}


def inputs(value: float, size: int = 3) -> dict[str, Tensor]:
    return {"x": torch.full((size,), float(value)), "y": torch.tensor(1.0, dtype=torch.float64)}


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the function and its replay take, one after the other."""
    values: list[float] = []

    def seconds(function: Callable[[], object], device: torch.device) -> float:
        function()
        return values.pop(0)

    monkeypatch.setattr(graph, "best_seconds", seconds)
    yield values
    assert not values


def test_second_call_records_and_later_ones_replay() -> None:
    recorder = Rerun()
    graphs = Graphs(recorder, "on")
    for call in range(5):
        result = graphs.run(double, inputs(call), "a")
        assert torch.equal(result["sum"], torch.full((3,), call + 1.0))
        assert torch.equal(result["rest"]["twice"], torch.full((3,), 2.0 * call))
        assert recorder.recorded == (call > 0)
    assert graphs.choice == "replayed"


def test_results_and_inputs_are_the_callers_own() -> None:
    graphs = Graphs(Rerun(), "on")
    given = inputs(1)
    results = [graphs.run(double, given, "a") for _ in range(3)]
    later = graphs.run(double, inputs(5), "a")
    assert all(torch.equal(result["sum"], torch.full((3,), 2.0)) for result in results)
    assert torch.equal(later["sum"], torch.full((3,), 6.0))
    assert torch.equal(given["x"], torch.ones(3))


def test_other_tensors_are_read_as_they_are_then() -> None:
    graphs, leaf = Graphs(Rerun(), "on"), torch.ones(3)

    def function(inputs: Any) -> Tensor:
        output: Tensor = leaf * inputs["x"]
        return output

    for value in (1.0, 2.0, 3.0):
        leaf.fill_(value)
        assert torch.equal(graphs.run(function, inputs(2), "a"), torch.full((3,), 2 * value))


def test_shapes_types_and_settings_are_recorded_apart() -> None:
    recorder = Rerun()
    graphs = Graphs(recorder, "on")
    half = {name: x.half() for name, x in inputs(2).items()}
    cases = [(inputs(2), "a"), (inputs(2), "b"), (inputs(2, 4), "a"), (half, "a")]
    for _ in range(3):
        for given, settings in cases:
            result = graphs.run(double, given, settings)["sum"]
            assert result.shape == given["x"].shape
            assert torch.equal(result, given["x"] + given["y"])
    assert recorder.recorded == 4


def test_the_faster_one_is_kept(times: list[float]) -> None:
    for eager, replayed, words in ((2.0, 1.0, "replayed"), (1.0, 2.0, "eager")):
        times += [eager, replayed]
        graphs = Graphs(Rerun(), "auto")
        calls = 0

        def function(inputs: Any) -> Tensor:
            nonlocal calls
            calls += 1
            output: Tensor = 2 * inputs["x"]
            return output

        for call in range(4):
            assert torch.equal(
                graphs.run(function, inputs(call), "a"), torch.full((3,), 2.0 * call)
            )
        assert graphs.choice == (
            f"{words} ({1000 * replayed:.2f} ms replayed, {1000 * eager:.2f} ms eager)"
        )


@pytest.mark.parametrize("context", [False, True])
def test_what_cannot_be_recorded_runs_as_it_is(context: bool) -> None:
    error = RuntimeError("operation not permitted when stream is capturing\nmore")
    if context:
        error, error.__context__ = RuntimeError("capture was invalidated"), error
    recorder = Rerun(error)
    graphs = Graphs(recorder, "on")
    graphs.run(double, inputs(0), "a")
    with pytest.warns(UserWarning, match=r"on cpu, steps run eagerly: operation .* capturing$"):
        result = graphs.run(double, inputs(1), "a")
    assert torch.equal(result["sum"], torch.full((3,), 2.0))
    for call in range(3):
        for settings in ("a", "b"):
            result = graphs.run(double, inputs(call), settings)
            assert torch.equal(result["sum"], torch.full((3,), call + 1.0))
    assert recorder.recorded == 1
    assert graphs.choice.startswith("eager (operation not permitted")


def test_errors_of_the_function_are_its_own() -> None:
    def function(inputs: Any) -> Tensor:
        raise RuntimeError("a bad shape")

    recorder = Rerun()
    graphs = Graphs(recorder, "on")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a bad shape"):
            graphs.run(function, inputs(0), "a")
    assert recorder.recorded == 0


def test_random_numbers_are_not_recorded() -> None:
    recorder = Rerun()
    graphs = Graphs(recorder, "on")

    def function(inputs: Any) -> Tensor:
        output: Tensor = inputs["x"] * torch.rand(3)
        return output

    graphs.run(function, inputs(1), "a")
    with pytest.warns(UserWarning, match="draws random numbers"):
        graphs.run(function, inputs(1), "a")
    assert recorder.recorded == 0


def test_the_recording_not_used_for_longest_makes_room() -> None:
    recorder = Rerun()
    graphs = Graphs(recorder, "on", limit=2)

    def use(size: int, times: int) -> None:
        for value in range(times):
            result = graphs.run(double, inputs(value, size), "a")
            assert torch.equal(result["sum"], torch.full((size,), value + 1.0))

    for size in (1, 2, 1, 3, 1):
        use(size, 40)
    assert recorder.recorded == 3
    use(2, 40)
    assert recorder.recorded == 4


def test_shapes_that_keep_changing_are_not_recorded() -> None:
    recorder = Rerun()
    graphs = Graphs(recorder, "on", limit=2)
    for size in (1, 2):
        for _ in range(3):
            graphs.run(double, inputs(0, size), "a")
    graphs.run(double, inputs(0, 3), "a")
    with pytest.warns(
        UserWarning, match="inputs have more than 2 shapes, .* replayed only 2 times"
    ):
        result = graphs.run(double, inputs(4, 3), "a")
    assert torch.equal(result["sum"], torch.full((3,), 5.0))
    assert recorder.recorded == 2


def test_recordings_make_way_where_memory_runs_out() -> None:
    recorder, full = Rerun(), False

    def function(inputs: Any) -> Tensor:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        output: Tensor = 2 * inputs["x"]
        return output

    graphs = Graphs(recorder, "on")
    for _ in range(3):
        graphs.run(function, inputs(1), "a")
    full = True
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(function, inputs(1, 5), "a")
    full = False
    assert torch.equal(graphs.run(function, inputs(2), "a"), torch.full((3,), 4.0))
    assert recorder.recorded == 2


def test_hosts_and_the_setting_off_have_none() -> None:
    assert make_graphs("on", torch.device("cpu")) is None
    assert make_graphs("off", torch.device("cuda")) is None


@pytest.mark.gpu
def test_cuda_graphs_repeat_gradients_of_gradients() -> None:
    leaf = torch.randn(8, 8, device="cuda", requires_grad=True)

    def function(inputs: Any) -> dict[str, Tensor]:
        inner = torch.tanh(inputs["x"] @ leaf)
        (gradient,) = torch.autograd.grad(inner.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        return {"value": inner.detach(), "second": second}

    graphs = make_graphs("on", torch.device("cuda"))
    assert graphs is not None
    for call in range(5):
        for rows in (4, 6):
            x = torch.randn(rows, 8, device="cuda") + call
            replayed, expected = graphs.run(function, {"x": x}, "a"), function({"x": x})
            for name in expected:
                torch.testing.assert_close(replayed[name], expected[name])
    assert graphs.choice == "replayed"


@pytest.mark.gpu
def test_looking_at_a_value_cannot_be_recorded() -> None:
    def function(inputs: Any) -> Tensor:
        output: Tensor = inputs["x"] * (2 if float(inputs["x"].sum()) > 0 else 3)
        return output

    graphs = make_graphs("on", torch.device("cuda"))
    assert graphs is not None
    x = torch.ones(3, device="cuda")
    graphs.run(function, {"x": x}, "a")
    with pytest.warns(UserWarning, match="no longer recorded"):
        graphs.run(function, {"x": x}, "a")
    assert torch.equal(graphs.run(function, {"x": -x}, "a"), -3 * x)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()

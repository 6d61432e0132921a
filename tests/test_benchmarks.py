"""The benchmarks run, compare what they say they compare, and count what they say they count."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules beside the scripts importable, as running a script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def small_cell(**settings: Any) -> Any:
    import grid

    return dataclasses.replace(grid.Cell("conv4-8-28", tasks=2, steps=2, query=2), **settings)


CASES = [
    (method, adapted)
    for method in ("second", "first", "implicit", "penalty")
    for adapted in ("all", "head")
]


@pytest.mark.parametrize(("method", "adapted"), CASES)
def test_contenders_compute_the_same(method: str, adapted: str) -> None:
    import contest
    import peers

    cell = small_cell(method=method, adapted=adapted)
    here = contest.Contest(CPU, seed=0, chunk=2, graph="auto")
    reference = here.reference(cell)
    missing = []
    for name in peers.contenders(cell):
        if name in peers.JAX:
            continue  # A process of its own, below.
        if here.missing(name):
            missing.append(name)
            continue
        answer = here.compare(name, cell, reference)
        assert 0 < answer["difference"] < 1e-10
        assert 1e-9 < answer["error"] < 1e-3
    if missing:
        pytest.skip(f"not installed, and so not compared: {', '.join(missing)}")


JAX_CASES = [
    *(("conv4-4-28", "JAX, vmap", *case) for case in CASES),
    ("conv4-4-28", "JAX, lax.map", "second", "all"),
    ("conv4-4-28", "JAX, lax.map", "implicit", "head"),
    ("conv4-64-28", "JAX, lax.map", "second", "all"),
    ("resnet12-16", "JAX, lax.map", "first", "all"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "name", "method", "adapted"), JAX_CASES)
def test_jax_computes_the_same(network: str, name: str, method: str, adapted: str) -> None:
    pytest.importorskip("jax")
    import contest
    import row
    import worker

    settings: dict[str, Any] = {"seed": 0, "chunk": 2, "graph": "auto"}
    cell = small_cell(network=network, method=method, adapted=adapted, query=1)
    reference = contest.Contest(CPU, **settings).reference(cell)
    process = worker.Worker("cpu", "default", settings, jax=True)
    try:
        answer = process.ask("compare", name, cell, reference, deadline=time.monotonic() + 300)
    finally:
        process.stop()
    assert 0 < answer["difference"] < 1e-10 < row.TOLERANCE
    assert 1e-9 < answer["error"] < 1e-2


def test_jax_where_it_is_missing_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax_contest
    import peers

    def refuse(name: str) -> ModuleType:
        raise ImportError("No module named 'jax'")

    for variable in ("XLA_PYTHON_CLIENT_PREALLOCATE", "NPROC", "JAX_PLATFORMS"):
        monkeypatch.setenv(variable, "")  # The contest sets them for its process.
    monkeypatch.setattr(peers, "import_peer", refuse)
    contest = jax_contest.JaxContest(CPU, seed=0)
    assert contest.missing(peers.JAX_VMAP) == "No module named 'jax'"


def test_relative_difference_of_gradients() -> None:
    import agreement
    import numpy as np

    reference = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    other = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.5]], np.float32)}
    assert agreement.relative_difference(other, reference) == pytest.approx(0.1)


@pytest.mark.parametrize(("method", "adapted"), [c for c in CASES if c != ("implicit", "all")])
def test_operations_are_those_of_a_plain_loop(method: str, adapted: str) -> None:
    pytest.importorskip("higher")
    import ours
    import peers
    import roofline
    from torch.utils.flop_counter import FlopCounterMode

    cell = small_cell(method=method, adapted=adapted, tasks=1)
    batch = cell.batch(0, CPU, torch.float32)
    name = peers.HIGHER if adapted == "all" else peers.CACHED
    step = peers.build(name, cell, ours.make_weights(cell, 0), batch)
    with FlopCounterMode(display=False) as counter:
        step()
    # PyTorch's second derivative of a convolution works on padded images.
    assert 1 <= counter.get_total_flops() / roofline.work(cell).operations < 1.03


def test_work_grows_with_tasks_alone() -> None:
    import roofline

    one, four = (roofline.work(small_cell(tasks=tasks)) for tasks in (1, 4))
    assert four == roofline.Work(4 * one.operations, 4 * one.bytes)
    half = roofline.work(small_cell(tasks=1, precision="bfloat16"))
    assert half.operations == one.operations
    assert one.bytes / 2 < half.bytes < one.bytes


def test_floor_is_the_larger_bound() -> None:
    import roofline

    cell = small_cell()
    least = roofline.work(cell)
    assert roofline.floor(cell, {"operations": 1.0, "bytes": 1e30}) == (
        least.operations,
        "operations",
    )
    assert roofline.floor(cell, {"operations": 1e30, "bytes": 2.0}) == (least.bytes / 2, "bytes")


def test_named_rows_differ_and_can_be_built() -> None:
    import grid

    for rows in grid.ROWS.values():
        assert len(set(rows)) == len(rows)
        for cell in rows:
            with torch.device("meta"):
                cell.encoder()
    with pytest.raises(ValueError, match=r"conv5-64-28.*must be"):
        small_cell(network="conv5-64-28").encoder()


def test_contenders_take_turns() -> None:
    import timing

    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    rounds = list(timing.take_turns(["a", "b"], measure, repeats=3, budget=100.0))
    assert order == ["a", "b", "b", "a", "a", "b"]
    a, b = ([found[name] for found in rounds] for name in ("a", "b"))
    assert timing.ratios(b, a) == timing.Spread(6 / 5, 3 / 4, 2.0)
    assert len(list(timing.take_turns(["a"], measure, repeats=9, budget=0.0))) == 2
    names = ["a", "b"]

    def measure_until_b_fails(name: str) -> float | None:
        if name == "b":
            names.remove(name)
            return None
        return 1.0

    rounds = list(timing.take_turns(names, measure_until_b_fails, repeats=2, budget=100.0))
    assert rounds == [{"a": 1.0}, {"a": 1.0}]


class StubPool:
    """Measuring processes that answer at once; what they are told to fail on, they fail on."""

    def __init__(self, failures: dict[tuple[str, str], Any], device: str = "cpu") -> None:
        self.failures, self.device = failures, device
        self.asked: list[tuple[str, str]] = []

    def new_row(self) -> None:
        self.asked.append(("new_row", ""))

    def allocators(self, name: str) -> tuple[str, ...]:
        return ("kept",) if name == "ours" or self.device != "cpu" else ("kept", "default")

    def worker(self, name: str, allocator: str) -> Any:
        return self

    def ask(self, request: str, name: Any, *arguments: object, deadline: float) -> Any:
        from worker import MeasurementError

        name = "ours" if request == "reference" else name
        self.asked.append((request, name))
        if (request, name) in self.failures:
            answer = self.failures[request, name]
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                raise MeasurementError(f"{request}: out of time")
            return answer
        return {
            "reference": {},
            "compare": {"difference": 0.0, "error": 1e-6},
            "prepare": {},
            "weigh": 1024,
            "time": 0.5 if name == "ours" else 3.0,
        }[request]


RATES = {"operations": 1e9, "bytes": 1e9}
PEERS = ["higher", "learn2learn", "TorchOpt", "JAX, vmap", "JAX, lax.map"]


def stub_row(pool: StubPool, cell: Any = None, **effort: Any) -> dict[str, Any]:
    """A row, without the contenders whose names are under ``missing``."""
    import row

    missing = effort.pop("missing", {})
    processes: Any = pool
    effort = {"repeats": 3, **effort}
    found = row.measure(cell or small_cell(), processes, RATES, row.Effort(**effort), missing)
    json.dumps(found)
    return found


def without(name: str) -> list[str]:
    return ["ours", *(peer for peer in PEERS if peer != name)]


@pytest.mark.parametrize(
    ("failures", "left", "remark"),
    [
        ({}, ["ours", *PEERS], None),
        ({("prepare", "higher"): None}, without("higher"), "higher: prepare: out of time"),
        (
            {("compare", "TorchOpt"): {"difference": 1e-3, "error": 1.0}},
            without("TorchOpt"),
            "TorchOpt: its float64 gradient differs from ours by 1e-03",
        ),
        ({("compare", "JAX, vmap"): None}, without("JAX, vmap"), "JAX, vmap: compare: out of time"),
        ({("reference", "ours"): None}, ["ours"], "ours: reference: out of time"),
        ({("prepare", "ours"): None}, [], "ours: prepare: out of time"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_row_goes_on_without_what_fails(
    failures: dict[tuple[str, str], Any], left: list[str], remark: str | None, device: str
) -> None:
    import table

    found = stub_row(StubPool(failures, device))
    timed = [name for name, entry in found["contenders"].items() if "runs" in entry]
    assert timed == left
    assert found["remarks"] == ([remark] if remark else [])
    for name in set(left) - {"ours"}:
        for ratio in found["contenders"][name]["times_faster"].values():
            assert ratio == {"median": 6.0, "low": 6.0, "high": 6.0}
    if "ours" in left:
        assert found["contenders"]["ours"]["seconds"]["median"] == 0.5
    assert len({len(line) for line in table.markdown([found]).splitlines()}) == 1


def test_ours_has_its_figure_before_a_peer_is_asked() -> None:
    pool = StubPool({})
    stub_row(pool, peers=("higher",))
    first_peer = next(i for i, (_, name) in enumerate(pool.asked) if name == "higher")
    assert pool.asked[:first_peer].count(("time", "ours")) == 2


def test_a_peer_that_fails_while_it_is_timed_leaves_the_others() -> None:
    found = stub_row(StubPool({("time", "higher"): None}))
    assert found["remarks"] == ["higher: time: out of time"] * 2  # In each of its two processes.
    assert "times_faster" not in found["contenders"]["higher"]
    assert found["contenders"]["TorchOpt"]["times_faster"]["as run"]["median"] == 6.0


def test_preparation_does_not_count_as_time_of_the_rounds() -> None:
    class SlowPool(StubPool):
        def ask(self, request: str, name: Any, *arguments: object, deadline: float) -> Any:
            assert deadline - time.monotonic() > 50
            if request == "prepare":
                time.sleep(0.3)
            return super().ask(request, name, *arguments, deadline=deadline)

    found = stub_row(SlowPool({}), peers=("higher",), row_seconds=0.2, repeats=4)
    assert len(found["contenders"]["higher"]["runs"]["kept"]) == 4


def test_jax_on_a_gpu_starts_when_pytorch_has_let_go() -> None:
    pool = StubPool({}, device="cuda")
    stub_row(pool)
    assert pool.asked.count(("new_row", "")) == 3
    last_of_ours = len(pool.asked) - 1 - pool.asked[::-1].index(("time", "ours"))
    vmap, lax_map = (pool.asked.index(("compare", name)) for name in PEERS[-2:])
    assert last_of_ours < vmap < lax_map
    assert ("new_row", "") in pool.asked[last_of_ours:vmap]
    assert ("new_row", "") in pool.asked[vmap:lax_map]


def test_an_interrupted_row_keeps_what_it_has() -> None:
    import row

    with pytest.raises(row.Interrupted) as interrupt:
        stub_row(StubPool({("compare", "TorchOpt"): KeyboardInterrupt()}))
    found = interrupt.value.row
    assert found["contenders"]["ours"]["seconds"]["median"] == 0.5
    assert found["remarks"] == ["interrupted"]


def test_peers_on_fewer_tasks_are_scaled() -> None:
    found = stub_row(StubPool({}), small_cell(tasks=4), repeats=2, peer_tasks=1)
    for name in ("higher", "learn2learn", "TorchOpt"):
        entry = found["contenders"][name]
        assert entry["runs"]["kept"] == [12.0, 12.0]
        assert entry["timed_tasks"] == 1
    vmap = found["contenders"]["JAX, vmap"]
    assert (vmap["runs"]["kept"], vmap["timed_tasks"]) == ([3.0, 3.0], 4)
    assert found["contenders"]["ours"]["tasks_per_second"] == 8.0
    missing = dict.fromkeys(PEERS, "not there")
    found = stub_row(StubPool({}), missing=missing)
    assert found["remarks"] == [f"no {name}" for name in PEERS]


def test_columns_of_peers_that_were_not_measured_are_left_out() -> None:
    import table

    missing = {name: "not there" for name in PEERS if name != "TorchOpt"}
    header = table.markdown([stub_row(StubPool({}), missing=missing)]).splitlines()[0]
    assert "x TorchOpt" in header
    assert "x higher" not in header
    assert table.markdown([]) == ""


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_speed_command(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    # Without peers, whose columns the rows of pretended pools have.
    options = "--network conv4-8-28 --tasks 2 --steps 1 --device cpu --repeats 2 --no_peers"
    arguments = [*options.split(), "--output", str(output)]
    result = run_script(sys.executable, str(BENCHMARKS / "speed.py"), *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    (row,) = report["rows"]
    assert row["cell"]["network"] == "conv4-8-28"
    assert row["contenders"]["ours"]["peak_bytes"] > 0
    assert row["floor"]["distance"] > 0
    assert {"processor", "cores", "commit", "command", "packages"} <= set(report["machine"])
    assert report["seed"] == 0
    assert report["missing"] == {}
    assert output.with_suffix(".md").read_text() in result.stdout


@pytest.mark.slow
def test_fine_tuning_in_stacks_equals_plain_loops(data_root: Path, tmp_path: Path) -> None:
    weights = data_root / "weights" / "mobilenet_v3_small_features_imagenet1k_bnfolded.pth"
    sizes = "--size 32 --shot 1 --query 2 --classes 5 --images 4 --tasks 2 --plain_tasks 1"
    arguments = [*sizes.split(), "--weights", str(weights), "--output", str(tmp_path / "f.json")]
    script = str(BENCHMARKS / "fine_tuning_speed.py")
    result = run_script(sys.executable, script, *arguments)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert len(rows) == 3
    assert all(row["difference"] < 1e-4 and row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_fine_tuning_on_validation_and_test_classes(data_root: Path, tmp_path: Path) -> None:
    weights = data_root / "weights" / "mobilenet_v3_small_features_imagenet1k_bnfolded.pth"
    options = "--size 32 --shots 1 --tasks 4 --validation_tasks 4"
    options += " --validation_images 20 --test_images 20"
    arguments = ["--root", str(data_root / "cifarfs"), "--weights", str(weights)]
    arguments += [*options.split(), "--only", "ridge"]
    output = tmp_path / "f.json"
    script = str(BENCHMARKS / "fine_tuning.py")
    result = run_script(sys.executable, script, *arguments, "--output", str(output))
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["method"] for row in rows] == ["prototypes", "ridge"]
    assert len(rows[1]["validation"]) == 4
    assert all(row["milliseconds_to_embed_a_task"] > 0 for row in rows)


class IdlePool:
    """Processes that nothing is asked of."""

    def __init__(self, *arguments: object) -> None:
        pass

    def describe(self) -> dict[str, object]:
        return {}

    def rates(self, cell: object) -> None:
        return None

    def stop(self) -> None:
        pass


def test_speed_command_starts_no_row_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speed

    monkeypatch.setattr(speed, "Pool", IdlePool)
    output = tmp_path / "speed.json"
    options = f"--rows cpu --network conv4-64-84 --seconds 1e-9 --no_peers --output {output}"
    speed.main(options.split())
    report = json.loads(output.read_text())
    assert report["rows"] == []
    assert report["not_started"] == [
        "conv4-64-84 second all T=4 steps=5 shot=1 float32",
    ]


def test_speed_command_writes_what_there_is_at_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import row
    import speed

    finished = stub_row(StubPool({}))
    with pytest.raises(row.Interrupted) as interrupt:
        stub_row(StubPool({("prepare", "higher"): KeyboardInterrupt()}))
    outcomes = iter([finished, interrupt.value])

    def measure(*arguments: object) -> dict[str, Any]:
        outcome = next(outcomes)
        if isinstance(outcome, row.Interrupted):
            raise outcome
        assert isinstance(outcome, dict)
        return outcome

    monkeypatch.setattr(speed, "Pool", IdlePool)
    monkeypatch.setattr(speed, "measure", measure)
    output = tmp_path / "speed.json"
    options = f"--network conv4-4-28 --tasks 1 2 3 4 --no_peers --output {output}"
    with pytest.raises(SystemExit) as end:
        speed.main(options.split())
    assert end.value.code == 130
    report = json.loads(output.read_text())
    assert [found["remarks"] for found in report["rows"]] == [[], ["interrupted"]]
    assert len(report["not_started"]) == 2
    printed = capsys.readouterr().out
    assert printed.count("not started, interrupted: conv4-4-28") == 2
    assert output.with_suffix(".md").read_text() in printed


@pytest.mark.slow
def test_an_interrupt_of_the_process_prints_no_traceback(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--device", "cpu", "--no_peers"]
    command += ["--network", "conv4-4-28", "--tasks", "1", "--steps", "1", "2", "--repeats", "999"]
    process = subprocess.Popen(
        [*command, "--own_seconds", "600", "--row_seconds", "600", "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background, interrupts are ignored, and so they would be here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert "steps=1" in process.stdout.readline()  # The row has begun.
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)  # As the terminal does: to the workers too.
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "not started, interrupted: conv4-4-28 second all T=1 steps=2" in printed
    assert "not_started" in json.loads(output.read_text())


def load_profile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import profile_step

    # It would hold for all tests that follow.
    monkeypatch.setattr(profile_step, "keep_freed_memory", lambda: True)
    return profile_step


@pytest.mark.slow
def test_profile_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile_step = load_profile(monkeypatch)
    options = "--network conv4-8-28 --tasks 2 --steps 2 --device cpu --chunk 2"
    profile_step.main(options.split())
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    times = {
        line.split("  ")[0]: [float(number) for number in line.split()[-4:-1]]
        for line in lines[start + 1 : lines.index("", start)]
    }
    for number in range(1, 5):
        assert min(times[f"encoder.blocks.block{number}.convolution"]) > 0
    for phase in range(3):
        parts = sum(phases[phase] for layer, phases in times.items() if layer != "all")
        assert parts == pytest.approx(times["all"][phase], rel=0.05)


@pytest.mark.slow
def test_first_order_steps_have_no_second_derivatives_of_layers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile_step = load_profile(monkeypatch)
    options = "--network conv4-8-28 --tasks 2 --steps 2 --device cpu --chunk 2 --method first"
    profile_step.main(options.split())
    layers = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "block" in line and "convolution " in line
    ]
    assert len(layers) == 4
    for line in layers:
        forward, gradient, second = (float(number) for number in line.split()[1:4])
        assert min(forward, gradient) > 0
        assert second == 0


def test_memory_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import memory

    options = "memory.py --network conv4-8-28 --steps 1 2 --device cpu"
    monkeypatch.setattr(sys, "argv", options.split())
    memory.main()
    assert "unroll, first order" in capsys.readouterr().out


STUB_PYTHON = """#!/bin/bash
case "$*" in
    *get_device_name*) echo "torch, some GPU" ;;
    *find_spec*)
        lacking=()
        for name in $LACKING; do [[ " $* " == *" $name "* ]] && lacking+=("$name"); done
        echo "${lacking[@]}" ;;
    *profile_step*) echo profiled "${@:3}" ;;
    -c*) [ -n "$NO_GPU" ] && exit 1 ; exit 0 ;;
    *memory.py*) echo failing "$@"; exit 3 ;;
    *) echo ran "$@" ;;
esac
"""


def test_gpu_script_goes_on_after_a_failure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STUB_PYTHON)
    python.chmod(0o755)
    out = tmp_path / "out"
    script = str(BENCHMARKS / "gpu.sh")
    result = run_script("bash", script, str(out), PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert "mark\\.gpu" not in result.stderr
    assert "tests/test_contract.py" in (out / "tests.txt").read_text()
    assert "speed.py --rows gpu" in (out / "speed.txt").read_text()
    assert (out / "memory.txt").read_text().count("failing") == 2
    profiles = (out / "profile.txt").read_text().splitlines()
    assert [line.split()[:3] for line in profiles] == [["profiled", "--device", "cuda"]] * 2
    summary = (out / "summary.txt").read_text()
    parts = [summary.index(f" {name}") for name in ("-m pytest", "-c", "benchmarks/speed.py")]
    assert parts == sorted(parts)
    assert parts[-1] < summary.index("benchmarks/memory.py")
    assert summary.count("ended with code 3") == 2
    assert summary.rstrip().endswith("done")
    skipped = run_script("bash", script, str(out), PYTHON=str(python), TOTAL="0")
    assert skipped.stdout.count("skipped, out of time") == 7
    assert run_script("bash", script, str(out), PYTHON=str(python), NO_GPU="1").returncode == 1
    assert run_script("bash", script).returncode == 2


def test_gpu_script_names_what_is_missing(tmp_path: Path) -> None:
    python, out, script = tmp_path / "python", tmp_path / "out", str(BENCHMARKS / "gpu.sh")
    python.write_text(STUB_PYTHON)
    python.chmod(0o755)

    def summary(**environment: str) -> str:
        run_script("bash", script, str(out), **{"PYTHON": str(python), **environment})
        return (out / "summary.txt").read_text()

    assert "it lacks: numpy (PYTHON names another)" in summary(LACKING="numpy yaml")
    assert "cannot run the benchmarks; it lacks: itself" in summary(PYTHON=str(tmp_path / "none"))
    found = summary(LACKING="hypothesis yaml jsonargparse")
    assert "skipped the contract suite, for this Python lacks: hypothesis yaml" in found
    assert found.rstrip().endswith("done")


@pytest.mark.slow
def test_profiles_of_the_gpu_script_run_as_they_are_called(tmp_path: Path) -> None:
    lines = (BENCHMARKS / "gpu.sh").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("profile="))
    code = "\n".join(lines[first : first + 2]).removeprefix("profile='").removesuffix("'")
    options = "--device cpu --network conv4-8-28 --tasks 1 --steps 1"
    result = run_script(sys.executable, "-c", code, *options.split())
    assert "ms a step without the profiler" in result.stdout, result.stderr


def test_cost_of_hypergradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bilevel_cost

    monkeypatch.setattr(bilevel_cost, "keep_freed_memory", lambda: True)
    output = tmp_path / "cost.json"
    options = f"bilevel_cost.py --steps 4 16 --variables 100 5000 --repeats 1 --output {output}"
    monkeypatch.setattr(sys, "argv", options.split())
    bilevel_cost.main()
    report = json.loads(output.read_text())
    memory = {n: s["bytes"] for n, s in report["slopes"]["inner steps"].items()}
    assert abs(memory["penalty"]) < 0.01
    assert abs(memory["implicit, 10 conjugate gradients"]) < 0.01
    assert memory["unrolling, graphs kept"] > 0.5
    assert {path.name for path in tmp_path.iterdir()} == {
        "cost.json",
        "cost-inner.png",
        "cost-outer.png",
    }
    assert capsys.readouterr().out.count("against") == 8

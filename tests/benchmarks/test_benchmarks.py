"""Every benchmark runs, at a small size. Nothing is timed."""

import importlib
import importlib.metadata
import json
import re
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from warm import Program

BACKEND = keras.backend.backend()
FOLDER = Path(__file__).parents[2] / "benchmarks"
NETWORK = ["--width", "0.02", "--batch", "4"]
SMALL = {
    "beta_monitor": ["--width", "0.02", "--steps", "2"],
    "export_latency": ["--width", "0.05", "--batches", "2"],
    "growth": ["--smallest"],
    "image_data_format": NETWORK,
    "locally_connected2d": [],
    "maxout": ["--batch", "4"],
    "peak_memory": [*NETWORK, "--network", "mnist", "--steps", "1"],
    "plain_pytorch": NETWORK,
    "profile_step": [*NETWORK, "--steps", "1", "--top", "1000"],
    "svhn": ["--what", "time", "--part", "0.001", "--validation", "30"]
    + ["--width", "0.02", "--data", "svhn"],
    "training_step": NETWORK,
    "zca_whitening": ["--examples", "50", "--size", "20", "--rounds", "1"],
}


# These arguments select the quick parts of a benchmark. The other parts, which
# start processes or compile for long, run only with `--thorough`.
QUICK = {
    "export_latency": ["--format", "tf_saved_model"],
    "peak_memory": ["--kind", "Dropout", "--kind", "invariant"],
    "training_step": ["--network", "cifar10"],
}
# Compiling with PyTorch takes longer than running the small networks.
UNCOMPILED = {"TORCH_COMPILE_DISABLE": "1"}


def run(name, *arguments, directory=None, **environment):
    program = Program(
        FOLDER / f"{name}.py", *arguments, cwd=directory, **environment
    )
    printed, errors = program.communicate()
    assert program.returncode == 0, errors
    return printed


def test_each_is_tried_here():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert scripts - {"turns", "table", "plot", "scaling"} == set(SMALL)


OTHERS = {"profile_step", "zca_whitening"}


@pytest.mark.parametrize("name", sorted(SMALL.keys() - OTHERS))
def test_by_turns(name, tmp_path, thorough):
    out = tmp_path / "results.jsonl"
    arguments = [*SMALL[name], "--seconds=0", f"--out={out}"]
    if thorough:
        printed = run(name, *arguments, "--rounds=2", directory=tmp_path)
    else:
        arguments += ["--rounds=1", *QUICK.get(name, [])]
        printed = run(name, *arguments, directory=tmp_path, **UNCOMPILED)
    printed = printed.splitlines()
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert {result["backend"] for result in results} == {BACKEND}
    for result in results:
        low, high = result["quartiles"]
        assert 0 < low <= result["ratio"] <= high
        line = f"{result['what']}, {result['name']}: "
        assert any(text.startswith(line) for text in printed)


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("turns")


def test_a_ratio_is_that_to_the_named_call(turns, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    seconds = {"a": np.array([1.0, 2.0]), "b": np.array([2.0, 8.0])}
    turns.report("step", seconds, "a", out, batch=4)
    one, other = map(json.loads, out.read_text().splitlines())
    assert (one["name"], one["ratio"], one["median"]) == ("a", 1, 1500)
    assert (other["name"], other["ratio"], other["median"]) == ("b", 3, 5000)
    assert other["quartiles"] == [2.5, 3.5]
    assert (other["against"], other["rounds"], other["batch"]) == ("a", 2, 4)
    assert "step, b: 3.000 of a (2.500 to 3.500)" in capsys.readouterr().out


def test_a_result_names_what_was_timed(turns, monkeypatch):
    loaded = dict.fromkeys(["keras", "torch", "ai_edge_litert", "numpy"])
    monkeypatch.setattr(turns, "sys", SimpleNamespace(modules=loaded))
    machine = turns.machine()
    assert machine["versions"] == {
        name: importlib.metadata.version(name)
        for name in ("keras", "torch", "ai-edge-litert")
    }
    assert machine["threads"] >= 1
    assert machine["processor"] == (turns.gpu() or turns.processor())


def test_a_time_is_that_of_one_call(turns, monkeypatch):
    now = [0.0]
    calls = []

    def call(name, seconds):
        calls.append(name)
        now[0] += seconds

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(turns.time, "sleep", lambda _: None)
    times = turns.by_turns(
        {"fast": lambda: call("fast", 0.1), "slow": lambda: call("slow", 0.5)},
        rounds=3,
        seconds=1.0,
    )
    np.testing.assert_allclose(times["fast"], [0.1] * 3)
    np.testing.assert_allclose(times["slow"], [0.5] * 3)
    # Three calls first; in each round one that is not timed, and as many as
    # take a second.
    assert calls.count("fast") == 3 + 3 * (1 + 10)
    assert calls.count("slow") == 3 + 3 * (1 + 2)


def test_profile_step():
    printed = run("profile_step", *SMALL["profile_step"])
    for kind in ("Dropout", "invariant"):
        part = printed.partition(f", mnist, {kind}:\n")[2]
        lines = re.match(r"( +[\d.]+ ms  .+\n)+", part)[0].splitlines()
        *times, total = [float(line.split()[0]) for line in lines]
        assert len(times) > 10
        assert times == sorted(times, reverse=True)
        # Each time is printed to a hundredth.
        assert sum(times) == pytest.approx(total, abs=0.005 * len(times) + 0.01)


def test_plot(tmp_path):
    run("plot", FOLDER / "results.jsonl", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_the_plot_has_the_ratios(tmp_path, monkeypatch):
    source = tmp_path / "results.jsonl"
    lines = [
        {"what": f"{grows} {size}", "name": name, "ratio": ratio, "size": size}
        | {"grows": grows, "mode": "JAX"}
        for grows in ("batch", "width")
        for name, ratios in {
            "invariant": [0.9, 0.8],
            "none": [0.7, 0.7],
        }.items()
        for size, ratio in zip([16, 64], ratios, strict=True)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.syspath_prepend(FOLDER)
    plot = importlib.import_module("plot")
    plot.main(source, tmp_path / "growth.png")
    panels = plt.gcf().axes
    assert [panel.get_xlabel() for panel in panels] == ["batch", "width"]
    for panel in panels:
        curve, one = panel.lines  # the line at 1
        assert curve.get_label() == "JAX, invariant"
        points = curve.get_xydata()
        np.testing.assert_array_equal(points, [[16, 0.9], [64, 0.8]])
        np.testing.assert_array_equal(one.get_ydata(), [1, 1])
    plt.close("all")


def test_zca_whitening():
    printed = run("zca_whitening", *SMALL["zca_whitening"])
    assert f"50 x 20, {BACKEND} backend" in printed


@pytest.mark.one_backend("jax")  # XLA counts the operations.
def test_scaling():
    lines = run("scaling", "--width", "0.02", "--batch", "4").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if "Table" in line]
    assert len(rows) == 4
    for _, parameters, _, on_8, *_ in rows:
        # Float32 gradients: 7/8 to sum them up and 7/8 to distribute the sum.
        sent = 4 * 2 * 7 / 8 * int(parameters.replace(",", "")) / 1e6
        assert on_8.startswith(f"{sent:.1f} MB, ")


@pytest.mark.one_backend("jax")  # `keras.distribution` needs JAX.
def test_the_traffic_between_two_processes():
    small = "--width", "0.1", "--batch", "4", "--steps", "5"
    row = run("scaling", "--measure", "2", *small).splitlines()[-1]
    measured, computed = map(float, row.strip("| ").split(" | ")[2:])
    # Other programs may use the loopback device as well.
    assert measured >= 0.9 * computed > 0


def test_the_page_has_the_tables_of_the_results():
    tables = run("table", FOLDER / "results.jsonl").split("\n\n")
    page = (FOLDER / "README.md").read_text()
    assert len(tables) == 10
    for table in tables:
        assert table.strip() in page


# The names of the columns of docs/speed.md, as `training_step.py` calls them.
COLUMNS = {
    "no dropout": "none",
    "beta on the hidden layers": "hidden",
    "on the input too": "invariant",
    "the input's beta frozen": "frozen",
}
NETWORKS = {
    "784-1000-1000-10": "mnist",
    "128c-p-128c-p-128c-p-1000fc": "cifar10",
}


@pytest.fixture
def step_times():
    """The committed ratios of a training step: by what and by name."""
    lines = (FOLDER / "results.jsonl").read_text().splitlines()
    return {
        (x["what"], x["name"]): x["ratio"]
        for x in map(json.loads, lines)
        if x["against"] == "Dropout"
    }


def test_the_page_on_speed_has_the_step_times(step_times):
    page = (FOLDER.parent / "docs" / "speed.md").read_text()
    cells = 0
    for block in page.split("\n\n"):
        if not block.startswith("|"):
            continue
        (corner, *names), _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in block.splitlines()
        ]
        for backend, *ratios in rows:
            what = f"{backend}, {NETWORKS[corner]}, width 1, batch 128"
            for name, ratio in zip(names, ratios, strict=True):
                measured = step_times[what, COLUMNS[name]]
                assert ratio == f"{measured:.2f}"
                cells += 1
    assert cells == 28


def test_other_pages_have_the_step_times(step_times):
    docs = FOLDER.parent / "docs"
    readme = (FOLDER.parent / "README.md").read_text()
    card = (docs / "method_cards.md").read_text()

    def ratio(backend, network="mnist"):
        what = f"{backend}, {network}, width 1, batch 128"
        return step_times[what, "invariant"]

    backends = "JAX", "TensorFlow", "PyTorch"
    on_cpu = [ratio(x, y) for x in backends for y in NETWORKS.values()]
    on_gpu = [
        ratio(f"{x} on an NVIDIA H200", y)
        for x in ("JAX", "PyTorch")
        for y in NETWORKS.values()
    ]
    assert f"[{min(on_cpu):.2f} to {max(on_cpu):.2f} of the time]" in readme
    assert f"{min(on_gpu):.2f} to {max(on_gpu):.2f} on a GPU" in readme
    jax, tensorflow, torch = map(ratio, backends)
    assert (
        f"{jax:.2f} of the time of one with `Dropout` on JAX, {tensorflow:.2f} "
        f"on TensorFlow and {torch:.2f} on PyTorch"
    ) in card
    jax, torch = (ratio(f"{x} on an NVIDIA H200") for x in ("JAX", "PyTorch"))
    assert (f"{jax:.2f} on JAX and {torch:.2f} on PyTorch on a GPU") in card

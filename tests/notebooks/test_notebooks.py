"""Runs each notebook at a small size, and checks its statements."""

import base64
import json
import pickle
import re
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client import KernelManager
from keras_invdrop.experiments.results.records import read_results
from keras_invdrop.experiments.results.report import claims
from keras_invdrop.experiments.results.report import tables
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GENERATED_IMAGES = Path(__file__).with_name("generated_images.py")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook, kind):
    """All outputs of a kind, such as `"image/png"`."""
    return [
        output.data[kind]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if kind in output.get("data", ())
    ]


@pytest.fixture(scope="module")
def kernel():
    """A kernel that runs one notebook after the other, with one import."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(PATHS[0].parent))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run(kernel, tmp_path):
    """Runs a notebook with other settings.

    Returns the notebook, and the values of expressions at its end.
    """

    def run(number, settings, expressions, before=""):
        notebook = nbformat.read(PATHS[number - 1], as_version=4)
        (place,) = (
            i
            for i, cell in enumerate(notebook.cells)
            if "parameters" in cell.metadata.get("tags", ())
        )
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        cell = nbformat.v4.new_code_cell("\n".join([*lines, before]))
        notebook.cells.insert(place + 1, cell)
        path = tmp_path / "values"
        last = (
            "import pickle\n"
            f"with open({str(path)!r}, 'wb') as file:\n"
            f"    pickle.dump([{', '.join(expressions)}], file)\n"
        )
        notebook.cells.append(nbformat.v4.new_code_cell(last))
        # Names of the previous notebook are deleted.
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        NotebookClient(notebook, kernel, timeout=120).execute()
        return notebook, *pickle.loads(path.read_bytes())

    return run


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def committed(path):
    return nbformat.read(path, as_version=4)


def test_outputs_are_those_of_one_run_from_top_to_bottom(committed):
    cells = code_cells(committed)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    assert shown(committed, "image/png")


def test_pictures_of_the_documentation_are_those_of_the_notebooks():
    pictures = {
        tag: shown(nbformat.v4.new_notebook(cells=[cell]), "image/png")
        for path in PATHS
        for cell in nbformat.read(path, as_version=4).cells
        for tag in cell.metadata.get("tags", ())
        if tag.endswith(".png")
    }
    assert "docs/dropped_digit.png" in pictures
    for name, drawn in pictures.items():
        (picture,) = map(base64.b64decode, drawn)
        assert (ROOT / name).read_bytes() == picture


def test_file_is_small_and_says_nothing_of_the_machine(path, committed):
    assert path.stat().st_size < 500_000
    assert set(committed.metadata) <= {
        "accelerator",
        "kernelspec",
        "language_info",
    }
    assert committed.metadata.language_info == {"name": "python"}
    for cell in committed.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code_cells(committed):
        for output in cell.outputs:
            texts = {
                kind: text
                for kind, text in output.get("data", {}).items()
                if kind != "image/png"
            }
            text = json.dumps([texts, output.get("text")])
            assert not re.search(r"(?<![\w.<:/])/\w+/", text), text


def test_opens_in_colab_and_installs_before_keras_is_imported(path, committed):
    badge = committed.cells[0].source
    repository = "keras-invdrop/keras-invdrop"
    assert f"/github/{repository}/blob/main/notebooks/{path.name})" in badge
    first, *others = (cell.source for cell in code_cells(committed))
    # Install from the clone with the notebook: no index has the package.
    (extras,) = re.findall(r'%pip install --quiet "\.\.\[(.+)\]"', first)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert f"!git clone --quiet https://github.com/{repository}\n" in first
    assert "%cd keras-invdrop/notebooks\n" in first
    (backend,) = re.findall(r'setdefault\("KERAS_BACKEND", "(\w+)"\)', first)
    assert backend in extras.split(",")
    assert not re.search("^(import|from) keras", first, re.MULTILINE)
    assert any(re.search("^import|^from", other) for other in others)


def test_links_lead_to_other_notebooks(path, committed):
    text = "\n".join(cell.source for cell in committed.cells)
    links = re.findall(r"\]\(([^):]*\.ipynb)\)", text)
    assert set(links) <= {other.name for other in PATHS} - {path.name}


def test_five_minutes(run):
    settings = {"examples": 1000, "units": 100, "epochs": 8}
    notebook, errors, classes, betas, means, picture = run(
        1,
        settings,
        [
            "{name: values[-1] for name, values in errors.items()}",
            "{name: type(m.layers[0]).__name__ for name, m in models.items()}",
            "{name: keras.ops.convert_to_numpy(model.layers[0].beta)"
            " for name, model in models.items() if 'standard' not in name}",
            "{e: d.train.x.mean(axis=0) for e, d in digits.items()}",
            "pictures",
        ],
    )
    assert classes["standard, inverted"] == "Dropout"
    assert classes["calibrated, inverted"] == "InvariantDropout"
    # Standard dropout does worse on the inverted encoding; calibrated,
    # invariant dropout does not.
    assert errors["standard, inverted"] > errors["standard, original"] + 2
    assert errors["calibrated, inverted"] < errors["standard, original"] + 2
    # The invariant network, calibrated or not, learned its shifts.
    for encoding, mean in means.items():
        learned = betas[f"calibrated, {encoding}"]
        assert np.any(learned != -mean)
        np.testing.assert_allclose(learned, -mean, atol=0.2)
    assert np.any(betas["invariant from 0, original"] != 0)
    # Half the pixels remain; the others have become their means.
    left = picture["... by invariant dropout"]
    kept = np.isclose(left, picture["inverted"], atol=1e-6)
    assert kept.mean() > 0.4
    np.testing.assert_allclose(
        left.ravel()[~kept.ravel()], means["inverted"][~kept.ravel()], atol=1e-5
    )
    assert len(shown(notebook, "image/png")) == 4


def test_convert_your_model(run):
    settings = {"examples": 500, "width": 0.25, "epochs": 2}
    _, same, classes, fold_difference, onnx_difference, error, report = run(
        2,
        settings,
        [
            "same_to_the_last_bit",
            "[type(layer).__name__ for layer in network.layers]",
            "fold_difference",
            "onnx_difference",
            "(errors['invariant'], onnx_error)",
            "report",
        ],
    )
    assert same
    # No dropout layer remains.
    assert set(classes) == {
        "InputLayer",
        "Conv2D",
        "EinsumDense",
        "Activation",
        "Flatten",
        "Dense",
    }
    assert fold_difference < 1e-5
    assert onnx_difference < 1e-5
    # Both use 1,000 digits; a borderline digit may change its class.
    assert error[0] == pytest.approx(error[1], abs=0.15)
    # Most of the noise on the input is gone.
    assert report[0].layer == "drop_input"
    assert report[0].at_present < 0.3 * report[0].at_zero


def in_the_report():
    """The tables, notes and claims that notebook 3 has to show."""
    results = read_results(ROOT / "results")
    *parts, notes = tables(results)
    with_titles = re.split(r"\n\n(?=### )", "\n\n".join(parts))
    return [*with_titles, notes, "\n\n".join(claims(results))]


def test_the_papers_tables(run):
    settings = {"examples": 200, "width": 0.02, "epochs": 2}
    notebook, errors, verdicts = run(
        3,
        settings,
        [
            "{name: each.result.test for name, each in runs.items()}",
            "verdicts.verdict.value_counts().to_dict()",
        ],
    )
    assert shown(notebook, "text/markdown") == in_the_report()
    claimed = in_the_report()[-1]
    for verdict, count in verdicts.items():
        assert claimed.count(f"| {verdict} |") == count
    assert set(errors) == {"standard", "invariant from 0", "calibrated"}
    table = shown(notebook, "text/html")[0]
    for name, error in errors.items():
        assert re.search(rf"<th>{name}</th>\s*<td>{error:.1f}</td>", table)


def test_the_committed_tables_are_those_of_the_results():
    committed = nbformat.read(PATHS[2], as_version=4)
    assert shown(committed, "text/markdown") == in_the_report()


def test_how_sure_is_it(run):
    settings = {
        "examples": 1000,
        "width": 0.5,
        "epochs": 15,
        "samples": 20,
        "rotated_digits": 100,
        "compared_seeds": 2,
        "compared_samples": 5,
    }
    _, unlike, rotated, abstaining, compared = run(
        4, settings, ["unlike", "rotated", "abstaining", "mean"]
    )
    entropy = unlike["entropy, ensemble"]
    for kind in ("noise", "shuffled digits", "inverted digits"):
        assert entropy[kind] > entropy["test digits"] + 0.3
        assert unlike["AUROC, ensemble"][kind] > 0.8
    assert rotated["entropy"][80] > rotated["entropy"][0] + 0.3
    assert rotated["test error (%)"][80] > rotated["test error (%)"][0] + 30
    error = abstaining["test error (%)"]
    assert error.is_monotonic_decreasing
    assert error.iloc[-1] < 0.6 * error.iloc[0]
    for measure in ("negative_log_likelihood", "brier_score"):
        errors = compared.loc["inverted"][measure]
        assert errors["calibrated"] < 0.9 * errors["standard"]


def test_missing_inputs(run):
    settings = {
        "seeds": 4,
        "rates": (0.5,),
        "steps": (300,),
        "cases": ("wine, not centred",),
    }
    _, found, levels = run(
        6, settings, ["found['wine, not centred']", "levels"]
    )
    # A half of the inputs is missing.
    error = {name: values[3].mean() for name, values in found.items()}
    assert set(found["calibrated: level"].shape) == {5, 4}
    assert error["calibrated: level"] < error["standard: 0"] - 10
    assert error["calibrated: level"] < error["standard: mean"] - 5
    # If no input is missing, the replacement makes no difference.
    for method in ("no input dropout", "standard"):
        np.testing.assert_array_equal(
            found[f"{method}: 0"][0], found[f"{method}: mean"][0]
        )
    level = levels["wine, not centred"]
    np.testing.assert_allclose(
        level["fixed at the mean"], level["mean"], rtol=1e-4
    )
    assert np.any(level["calibrated"] != level["fixed at the mean"])


@pytest.mark.thorough
def test_transformers(run):
    settings = {
        "packages": ("matplotlib", "pandas"),
        "sentences": {"training": 500, "validation": 100, "test": 100},
        "epochs": 4,
        "further_epochs": 1,
        "seeds": 2,
        "samples": 5,
        "digit_examples": 1000,
        "digit_epochs": 8,
    }
    _, same, conversions, errors, kept, reports, unlike, rejected, vit = run(
        7,
        settings,
        [
            "same_to_the_last_bit",
            "[(each.path, each.beta) for each in bert_conversions]",
            "(first_error, start)",
            "difference.max()",
            "{name: (each.at_best, each.at_present, each.at_zero, len(each))"
            " for name, each in reports.items()}",
            "unlike",
            "curve",
            "(vit_error, vit_unlike, vit_curve)",
        ],
    )
    assert same
    # Two blocks with three places each, the embeddings and the classifier.
    assert len(conversions) == 8
    assert all(beta is not None for _, beta in conversions)
    first_error, start = errors
    assert first_error < 30  # of two classes
    assert start["ordinary"] == first_error
    assert start["calibrated, predictions kept"] == first_error
    assert kept < 1e-5
    for name, (best, present, zero, places) in reports.items():
        # A layer that each block of the ViT calls twice has two rows.
        assert places == (8 if name.startswith("BERT") else 10)
        # The vision transformer was calibrated, and then trained.
        assert present == zero or name == "ViT, trained"
        assert best < zero
    assert unlike["AUROC, ensemble"]["licences"] > 0.6
    assert rejected[len(rejected) // 2] < rejected[-1]
    vit_error, vit_unlike, vit_curve = vit
    assert vit_error < 25
    for kind in ("digits 8 and 9", "patches shuffled"):
        assert vit_unlike["AUROC, ensemble"][kind] > 0.6
    assert vit_curve[len(vit_curve) // 2] < 0.6 * vit_curve[-1]


@pytest.mark.thorough
def test_cifar10_and_svhn(run):
    settings = {
        "examples": 100,
        "validation": 60,
        "width": 0.05,
        "epochs": 1,
        "maxout": True,
        "svhn": True,
    }
    _, results, parameters, dtypes, shape, neighbours = run(
        5,
        settings,
        [
            "{name: each.result for name, each in runs.items()}",
            "parameters",
            "[(each.compute_dtype, each.variable_dtype)"
            " for each in runs['calibrated'].model.layers]",
            "shape",
            "house_numbers.train.batches(50, 0).take(1).get_single_element()",
        ],
        before=f"import runpy\nrunpy.run_path({str(GENERATED_IMAGES)!r})",
    )
    assert shape == (8, 8, 3)
    # As the networks' docstrings have them.
    assert parameters.parameters["ReLU"] == 2_888_194
    assert parameters.parameters["maxout, CIFAR-10"] == 16_247_830
    # 3 colours, 3 x 128 feature maps and 1,000 hidden units.
    assert parameters["and shifts"]["ReLU"] == 1387
    assert ("bfloat16", "float32") in dtypes
    # The softmax.
    assert dtypes[-1] == ("float32", "float32")
    rows = {name: (each.row, each.dataset) for name, each in results.items()}
    assert rows["standard"] == ("table3/relu/standard", "cifar10")
    assert rows["maxout"] == ("table6/cifar10/invariant", "cifar10")
    assert rows["svhn"] == ("table4/relu/invariant", "svhn_cropped")
    for name, result in results.items():
        assert result.recipe["dtype_policy"] == "mixed_bfloat16"
        calibrated = name in ("calibrated", "maxout")
        assert result.recipe["calibrated"] == calibrated


@pytest.mark.thorough
def test_batch_normalization(run):
    settings = {
        "examples": 100,
        "validation": 60,
        "width": 4,
        "epochs": 2,
        "rates": (0.1, 0.3),
        "seeds": (0, 1),
    }
    _, shifts, errors, selected = run(
        8,
        settings,
        ["shifts", "errors", "selected"],
        before=f"import runpy\nrunpy.run_path({str(GENERATED_IMAGES)!r})",
    )
    # Three methods, two seeds, two layers.
    assert len(shifts) == 12
    assert shifts[["measured", "predicted"]].gt(0).all(axis=None)
    assert shifts.predicted.lt(1).all()
    assert len(errors) == 8
    assert selected["no dropout"] == 0
    assert errors.test.between(0, 100).all()
    without = errors[errors.method == "no dropout"]
    assert without.rate.eq(0).all()

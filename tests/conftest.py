import os
import shutil
import tempfile
from pathlib import Path

import pytest

# JAX compiles hundreds of small programs, each of which runs a few times. It
# compiles three times as fast without most optimizations of the machine code;
# the results and their precision stay the same.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tests share compiled programs, also between processes, so that each program is
# compiled once.
MADE_HERE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if MADE_HERE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Each of two processes that run tests side by side would start a thread for
# every core, and waiting threads would keep the cores busy. On two cores,
# PyTorch has trained ten times as fast with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On CPUs, TensorFlow's only convolutions in channels_first come from oneDNN,
# which it disables by default on older CPUs.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# The tolerances are those of float32. GPUs would round the factors of products
# to 10 bits.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


# The backend of the tests that do not depend on it: PyTorch compiles nothing.
# On JAX they take twice as long.
ONE_BACKEND = "torch"
# Folders whose tests do not depend on the backend.
FOLDERS = {"benchmarks", "data", "notebooks", "packaging", "results", "runners"}


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run the tests that are marked `thorough`, too",
    )


def pytest_collection_modifyitems(config, items):
    """Deselects tests that another stage of `make test` or `test-all` runs."""
    import keras

    backend = keras.backend.backend()
    left_out = set()
    if not config.getoption("thorough"):
        left_out.add("thorough")
        if backend != "jax":
            left_out.add("thorough_elsewhere")
    kept, deselected = [], []
    for item in items:
        folders = item.path.relative_to(Path(__file__).parent).parts
        marks = {mark.name: mark.args for mark in item.iter_markers()}
        if FOLDERS & set(folders):
            marks.setdefault("one_backend", ())
        (only,) = marks.get("one_backend", (backend,)) or (ONE_BACKEND,)
        leave = only != backend or left_out & set(marks)
        (deselected if leave else kept).append(item)
    config.hook.pytest_deselected(items=deselected)
    items[:] = kept


@pytest.fixture
def eager():
    """Makes TensorFlow run eagerly, without tracing what runs only once."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def thorough(request):
    """Whether to run as many random cases as `make test-all`."""
    return request.config.getoption("thorough")


@pytest.fixture
def image_data_format():
    """A function that sets Keras' image data format for one test."""
    import keras

    before = keras.config.image_data_format()
    yield keras.config.set_image_data_format
    keras.config.set_image_data_format(before)


def pytest_terminal_summary(terminalreporter):
    """Prints the properties that tests recorded with `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


def pytest_unconfigure():
    if MADE_HERE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"])

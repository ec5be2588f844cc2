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

    left_out = set()
    elsewhere = keras.backend.backend() != "jax"
    if elsewhere:
        left_out.add("one_backend")
    if not config.getoption("thorough"):
        left_out.add("thorough")
        if elsewhere:
            left_out.add("thorough_elsewhere")
    for item in items:
        if FOLDERS & set(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker("one_backend")
    kept, deselected = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        (deselected if marks & left_out else kept).append(item)
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

import hashlib
import importlib
import io
import shutil
import socket
import time
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Event
from threading import Thread

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from keras_invdrop.experiments.data import datasets
from keras_invdrop.experiments.data import downloads
from keras_invdrop.experiments.data.downloads import Download

from keras_invdrop import Reseed

SHAPES = {"mnist": (28, 28, 1), "svhn_cropped": (32, 32, 3)}


def image(name, i):
    return np.full(SHAPES[name], i, "uint8")


def prepare(name, sizes, directory, image=image):
    """Writes a small data set in the form of the real one.

    The image of example `i` has the value `i` everywhere, its label is the
    last digit of `i`.
    """
    builder = tfds.builder(name, data_dir=directory)

    def generate(examples):
        for i in range(examples):
            example = {"image": image(name, i), "label": i % 10, "id": str(i)}
            yield i, {key: example[key] for key in builder.info.features}

    builder._split_generators = lambda manager: {
        split: generate(examples) for split, examples in sizes.items()
    }
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """The directory of the data sets, as if TFDS_DATA_DIR named it."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare("mnist", {"train": 40, "test": 20}, directory)
    prepare("svhn_cropped", {"train": 40, "extra": 20, "test": 10}, directory)
    return directory


@pytest.fixture
def files(prepared, data_dir):
    """A copy of the prepared data sets, for tests that damage it."""
    shutil.copytree(prepared, data_dir, dirs_exist_ok=True)
    return data_dir


def damage(directory, how, file="*-train.tfrecord*"):
    """Damages a file and returns its directory."""
    (path,) = directory.glob(f"*/{file}")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if how == "truncated":
        path.write_bytes(content[:middle])
    elif how == "corrupted":
        content[middle] ^= 0xFF
        path.write_bytes(content)
    else:
        path.unlink()
    return path.parent


def unreadable(name, directory):
    """The error about a data set that cannot be read."""
    return (
        f"'{name}' in {directory} cannot be read. .* delete this directory .* "
        f"tfds build {name}"
    )


def test_arrays(files):
    mnist = Download("mnist", (28, 28, 1))
    assert mnist.source == "tensorflow-datasets mnist/3.0.1"
    images, labels = mnist.arrays("train")
    assert images.shape == (40, 28, 28, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    # Every image exists and has its own label.
    assert sorted(images[:, 0, 0, 0]) == list(range(40))
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 10)
    assert len(mnist.arrays("test")[1]) == 20


def test_arrays_of_chosen_examples(files):
    mnist = Download("mnist", (28, 28, 1))
    images, labels = mnist.arrays("train")
    which = np.arange(40) % 7 == 2
    chosen_images, chosen_labels = mnist.arrays("train", which)
    np.testing.assert_array_equal(chosen_images, images[which])
    np.testing.assert_array_equal(chosen_labels, labels[which])
    none, _ = mnist.arrays("train", np.zeros(40, bool))
    assert none.shape == (0, 28, 28, 1)


def test_labels_are_read_without_the_images(data_dir):
    # One example is not an image.
    directory = prepare(
        "mnist",
        {"train": 12},
        data_dir,
        lambda name, i: io.BytesIO(b"no PNG") if i == 7 else image(name, i),
    )
    mnist = Download("mnist", (28, 28, 1))
    labels = mnist.labels("train")
    assert labels.dtype == np.int32
    assert sorted(labels) == sorted(i % 10 for i in range(12))
    with pytest.raises(OSError, match=unreadable("mnist", directory)):
        mnist.arrays("train")


def test_labels_are_in_the_order_of_the_images(files):
    mnist = Download("mnist", (28, 28, 1))
    np.testing.assert_array_equal(
        mnist.labels("train"), mnist.arrays("train")[1]
    )


def test_mock_data(connected):
    with tfds.testing.mock_data(num_examples=25):
        svhn = Download("svhn_cropped", (32, 32, 3))
        images, labels = svhn.arrays("extra")
        assert images.shape == (25, 32, 32, 3)
        np.testing.assert_array_equal(svhn.labels("extra"), labels)


def absent(data_dir, reason):
    """The error about a data set that does not exist."""
    return (
        f"'mnist' is not in {data_dir}/mnist/3.0.1 and could not be "
        "downloaded. .* TFDS_DATA_DIR .* tfds build mnist --data_dir DIRECTORY"
        rf".* \({reason}\)$"
    )


@pytest.fixture
def connected(monkeypatch):
    """No host is asked whether it is there."""
    monkeypatch.setattr(Download, "_missing", lambda self, downloads: [])


def test_absent_data_set(data_dir, monkeypatch, connected):
    def download_and_prepare(self):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare
    )
    message = absent(data_dir, "ConnectionError: no route to host")
    with pytest.raises(OSError, match=message):
        datasets.load("mnist")
    assert list(data_dir.iterdir()) == []


@pytest.fixture
def name_server(monkeypatch):
    """Makes a function the only one that knows the address of a host."""
    monkeypatch.setenv("NO_PROXY", "*")
    return lambda ask: monkeypatch.setattr(socket, "getaddrinfo", ask)


def test_no_network(data_dir, monkeypatch, name_server):
    def unknown(host, *options, **more):
        raise socket.gaierror(-2, "Name or service not known")

    name_server(unknown)
    # A missing directory is not created either.
    monkeypatch.setattr(
        tfds.core.constants, "DATA_DIR", str(data_dir / "new" / "data")
    )
    message = absent(data_dir / "new/data", "ConnectionError: .*not known.*")
    start = time.monotonic()
    with pytest.raises(OSError, match=message):
        datasets.load("mnist")
    assert time.monotonic() - start < 15
    assert list(data_dir.iterdir()) == []


def test_network_that_swallows_everything(data_dir, monkeypatch, name_server):
    def silent(host, *options, **more):
        Event().wait()

    name_server(silent)
    monkeypatch.setattr(downloads, "PATIENCE", 1)
    message = absent(data_dir, r"TimeoutError: no connection to .* in 1 s")
    start = time.monotonic()
    with pytest.raises(OSError, match=message):
        datasets.load("mnist")
    assert time.monotonic() - start < 15
    assert list(data_dir.iterdir()) == []


CONTENT = b"five examples"


class Host(ThreadingHTTPServer):
    """Serves a file on this machine, and may be slow or busy."""

    def __init__(self, delay=0, refused=0):
        self.delay = delay
        self.refused = refused
        self.requests = 0
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/examples.txt"
        Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.server.requests <= self.server.refused:
            return  # The connection is closed.
        time.sleep(self.server.delay)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *words):
        pass


@pytest.fixture
def host(request, data_dir, monkeypatch):
    """A host on this machine, from which MNIST is downloaded."""
    monkeypatch.setenv("NO_PROXY", "*")
    host = Host(**getattr(request, "param", {}))
    mnist = tfds.builder_cls("mnist")
    info = tfds.core.download.checksums.UrlInfo(
        size=tfds.core.utils.Size(len(CONTENT)),
        checksum=hashlib.sha256(CONTENT).hexdigest(),
        filename="examples.txt",
    )

    def split_generators(self, manager):
        assert manager.download(host.url).read_bytes() == CONTENT
        examples = [
            (i, {"image": image("mnist", i), "label": i}) for i in range(5)
        ]
        return {"train": iter(examples)}

    monkeypatch.setattr(mnist, "url_infos", {host.url: info})
    monkeypatch.setattr(mnist, "_split_generators", split_generators)
    yield host
    host.close()


@pytest.mark.parametrize(
    "host", [{}, {"delay": 2}, {"refused": 1}], indirect=True
)
def test_download(host):
    mnist = Download("mnist", (28, 28, 1))
    assert sorted(mnist.labels("train")) == list(range(5))
    assert host.requests == 2 + host.refused  # one to see that it is there


def test_another_process_is_faster(host, monkeypatch):
    mnist = tfds.builder_cls("mnist")
    whole = mnist._split_generators

    def split_generators(self, manager):
        monkeypatch.setattr(mnist, "_split_generators", whole)
        Download("mnist", (28, 28, 1))  # in place of the other process
        return whole(self, manager)

    monkeypatch.setattr(mnist, "_split_generators", split_generators)
    assert len(Download("mnist", (28, 28, 1)).labels("train")) == 5


def test_downloaded_files_need_no_network(host, data_dir):
    Download("mnist", (28, 28, 1))
    host.close()
    shutil.rmtree(data_dir / "mnist")
    mnist = Download("mnist", (28, 28, 1))
    assert len(mnist.labels("train")) == 5


def test_files_copied_by_hand_need_no_network(host, data_dir):
    host.close()
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "examples.txt").write_bytes(CONTENT)
    mnist = Download("mnist", (28, 28, 1))
    assert len(mnist.labels("train")) == 5


def test_other_downloads_stay(host, data_dir):
    host.close()
    other = data_dir / "downloads" / "mnist" / "other.gz"
    other.parent.mkdir(parents=True)
    other.write_bytes(CONTENT)
    message = absent(data_dir, "ConnectionError: .*refused.*")
    start = time.monotonic()
    with pytest.raises(OSError, match=message):
        Download("mnist", (28, 28, 1))
    assert time.monotonic() - start < 15
    assert [path for path in data_dir.rglob("*") if path.is_file()] == [other]
    assert not (data_dir / "downloads" / "extracted").exists()
    assert not (data_dir / "mnist").exists()


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow_datasets"])
def test_missing_package(package, monkeypatch):
    import_module = importlib.import_module

    def without_package(name, *options):
        if name == package:
            raise ModuleNotFoundError("No module", name=name)
        return import_module(name, *options)

    monkeypatch.setattr(importlib, "import_module", without_package)
    message = (
        f"^The data set 'svhn_cropped', with every backend, needs `{package}`, "
        r"which is not installed: .*invdrop\[experiments,tensorflow\] @ git"
    )
    with pytest.raises(ImportError, match=message):
        datasets.load("svhn_cropped")


@pytest.mark.parametrize("how", ["truncated", "corrupted", "removed"])
def test_damaged_records(how, files):
    directory = damage(files / "mnist", how)
    mnist = Download("mnist", (28, 28, 1))
    assert len(mnist.arrays("test")[1]) == 20
    for read in (mnist.arrays, mnist.labels):
        with pytest.raises(OSError, match=unreadable("mnist", directory)):
            read("train")


@pytest.mark.parametrize("how", ["truncated", "corrupted", "removed"])
def test_records_damaged_before_they_are_streamed(how, files):
    stream = datasets.load("svhn_cropped", validation=30).train
    directory = damage(files / "svhn_cropped", how)
    error = unreadable("svhn_cropped", directory)
    for batches in (
        lambda: stream.batches(10, 0),
        lambda: stream.shuffled(10, Reseed()),
    ):
        with pytest.raises(OSError, match=error), stream.reading():
            list(batches())


@pytest.mark.parametrize("how", ["truncated", "removed"])
def test_damaged_description(how, files):
    damage(files / "mnist", how, "dataset_info.json")
    # Not always the directory of the version, which is read from the file.
    with pytest.raises(OSError, match=unreadable("mnist", f"{files}/mnist.*")):
        datasets.load("mnist")


def test_errors_of_a_training_are_not_those_of_a_file(files):
    mnist = Download("mnist", (28, 28, 1))
    error = tf.errors.ResourceExhaustedError(None, None, "out of memory")
    with pytest.raises(type(error), match="out of memory"), mnist.reading():
        raise error


def test_images_of_another_shape(files):
    mnist = Download("mnist", (32, 32, 3))
    message = (
        r"Expected images of shape \(32, 32, 3\) in 'train' of "
        rf"{files}/mnist/3.0.1. Received: \(28, 28, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        mnist.arrays("train")


@pytest.mark.parametrize("wrong", [-1, 10])
def test_label_out_of_range(wrong, connected):
    # Images are read a thousand at a time.
    labels = np.arange(1100) % 10
    labels[1050] = wrong
    data = tf.data.Dataset.from_tensor_slices(
        {"image": np.zeros((1100, 28, 28, 1), "uint8"), "label": labels}
    )
    message = (
        "Expected labels from 0 to 9 in 'test' of .*mnist.*. "
        f"Received: {wrong}, of example 1050"
    )
    with tfds.testing.mock_data(as_dataset_fn=lambda *_, **options: data):
        mnist = Download("mnist", (28, 28, 1))
        for read in (mnist.arrays, mnist.labels):
            with pytest.raises(ValueError, match=message):
                read("test")

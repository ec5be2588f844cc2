"""Models with our layers on several devices, on each backend."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from warm import Program

PROGRAM = Path(__file__).with_name("strategies.py")
BACKEND = keras.backend.backend()


def started(*arguments):
    return Program(PROGRAM, *arguments, CUDA_VISIBLE_DEVICES="")


def told(processes):
    """The printed weights and dropout outputs of processes."""
    found = []
    for process in processes:
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        # PyTorch's gloo prints "[Gloo] ..." before.
        lines = printed.splitlines()
        found.append([json.loads(line) for line in lines if line[:2] == "[["])
    return found


def check_same(weights, others):
    for mine, its in zip(weights, others, strict=True):
        # Gradients are summed in another order, with 24 bits.
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it is TensorFlow's")
def test_mirrored_strategy():
    ((one, one_drops, two, two_drop),) = told([started("mirrored")])
    check_same(two[0], one[0])
    # Nothing is lost with a mask, either: the weights are others, and finite.
    assert all(np.isfinite(each).all() for each in two_drop[0])
    assert not np.allclose(two_drop[0][1], one_drops[0][1], atol=1e-3)
    # The documentation says so: the replicas' masks are the same.
    first, second = np.array(two_drop[1])
    np.testing.assert_array_equal(first, second)
    assert 0.3 < np.mean(first == 0) < 0.7


@pytest.mark.skipif(BACKEND != "torch", reason="it is PyTorch's")
def test_distributed_data_parallel(tmp_path):
    alone = started("parallel", 1, tmp_path / "alone", 0)
    pair = [
        started("parallel", 2, tmp_path / "pair", each) for each in range(2)
    ]
    (one,), *two = map(told, ([alone], pair))
    (first, first_drops), (second, second_drops) = two[0]
    check_same(first[0], one[0][0])
    check_same(second[0], first[0])
    # With different masks the processes still agree on the weights.
    check_same(second_drops[0], first_drops[0])
    assert np.any(
        (np.array(first_drops[1]) == 0) != (np.array(second_drops[1]) == 0)
    )

"""`ZCAWhitening.adapt`, compared with scikit-learn, at the size of CIFAR-10.

Both learn from the same 50,000 generated examples of 3,072 numbers, in one
process, one after the other, `--rounds` times each. scikit-learn's `PCA` with
`svd_solver="covariance_eigh"` decomposes the same covariance, in float32; "with
the matrix" also computes a whitening matrix from the result, as `adapt` does.
With `svd_solver="full"`, which is timed once, `PCA` decomposes the examples
themselves. The memory is the peak resident memory of the process after `adapt`,
including the interpreter, the backend and the examples (614 MB), as Linux
reports it.

    KERAS_BACKEND=jax python benchmarks/zca_whitening.py
"""

import argparse
import resource
import statistics
import time

import keras
import numpy as np
from sklearn.decomposition import PCA

from keras_invdrop import ZCAWhitening

EPSILON = 0.1


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = arguments.examples, arguments.size
    x = np.random.default_rng(0).standard_normal(shape, dtype="float32")

    def ours():
        ZCAWhitening(EPSILON).adapt(x)

    def pca():
        return PCA(svd_solver="covariance_eigh").fit(x)

    def pca_with_the_matrix():
        fitted = pca()
        scale = 1 / np.sqrt(fitted.explained_variance_ + EPSILON)
        return (fitted.components_.T * scale) @ fitted.components_

    ours()  # The first call, which loads libraries, is not timed.
    peak = peak_gigabytes()
    times = {"ours": [], "PCA": [], "PCA with the matrix": []}
    for _ in range(arguments.rounds):
        times["ours"].append(seconds(ours))
        times["PCA"].append(seconds(pca))
        times["PCA with the matrix"].append(seconds(pca_with_the_matrix))
    medians = {name: statistics.median(t) for name, t in times.items()}
    full = seconds(lambda: PCA(svd_solver="full").fit(x))
    print(f"{shape[0]:,} x {shape[1]:,}, {keras.backend.backend()} backend")
    print(f"peak memory of the process after adapt: {peak:.2f} GB")
    for name, median in medians.items():
        print(
            f"{name}: median {median:.2f} s of {arguments.rounds}, "
            f"adapt takes {medians['ours'] / median:.2f} of it"
        )
    print(
        f"PCA by the full SVD of the examples: {full:.2f} s, once, "
        f"adapt takes {medians['ours'] / full:.2f} of it"
    )


if __name__ == "__main__":
    main()

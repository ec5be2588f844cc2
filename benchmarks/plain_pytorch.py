"""A training step with invariant dropout, compared with plain PyTorch.

The networks of Tables 2 and 3 train in batches of `--batch`, in these forms:

- PyTorch: modules of `torch.nn` with `nn.Dropout`, trained as in PyTorch's
  tutorials; the convolutional network uses channels last,
- compiled: the same modules after `torch.compile`, if it succeeds,
- invariant: the Keras network with `InvariantDropout`, on the current backend,
- frozen: the same network, with the input's beta not trainable,
- sgemm: one product of two square float32 matrices by NumPy's BLAS, with as
  many multiplications as the dense layers and convolutions of `frozen`. The
  ratio of its time to the time of `frozen` is the fraction of the machine's
  measured floating-point rate that the step reaches.

    KERAS_BACKEND=jax python benchmarks/plain_pytorch.py
"""

import math
import sys

import keras
import numpy as np
import torch
from keras_invdrop.experiments.train.trial import IMAGE_DATA_FORMAT
from torch import nn
from training_step import MODES
from training_step import NETWORKS
from training_step import step
from turns import NAME
from turns import compare
from turns import parser


def mnist(width):
    units = round(1000 * width)
    return nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(784, units),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(units, 10),
    )


def cifar10(width):
    maps, units = round(128 * width), round(1000 * width)
    layers = [nn.Dropout(0.2)]
    for channels in (3, maps, maps):
        layers += [
            nn.Conv2d(channels, maps, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Dropout(0.5),
        ]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(16 * maps, units),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(units, 10),
    ).to(memory_format=torch.channels_last)


PLAIN = {"mnist": (mnist, (784,)), "cifar10": (cifar10, (3, 32, 32))}


def plain_step(network, batch, width, compiled=False):
    """A call that runs one step of a plain PyTorch training loop."""
    build, shape = PLAIN[network]
    model = build(width)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True
    )
    loss_of = nn.CrossEntropyLoss()
    x = torch.rand(batch, *shape)
    if len(shape) == 3:
        x = x.to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    logits_of = torch.compile(model) if compiled else model

    def train():
        optimizer.zero_grad()
        loss = loss_of(logits_of(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    train()  # a model that cannot be compiled fails here
    return train


def multiplications(network, batch, width):
    """The multiplications of a step, except for the input's gradient."""
    model = NETWORKS[network](dropout="none", width=width)
    layers = [layer for layer in model.layers if layer.weights]
    # Each weight is used at each position of the output.
    forward = [
        math.prod((*layer.kernel.shape[:-1], *layer.output.shape[1:]))
        for layer in layers
    ]
    return batch * (3 * sum(forward) - forward[0])


def product(number):
    """A matrix product of about `number` multiplications, as a call."""
    size = round(number ** (1 / 3))
    rng = np.random.default_rng(0)
    left, right = rng.random((2, size, size), dtype="float32")
    return lambda: left @ right


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", choices=NETWORKS, action="append")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--width", type=float, default=1.0)
    arguments = options.parse_args()
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    batch, width = arguments.batch, arguments.width
    for network in arguments.network or NETWORKS:
        calls = {"PyTorch": plain_step(network, batch, width)}
        try:
            calls["compiled"] = plain_step(network, batch, width, True)
        except Exception as error:  # such as a missing C++ compiler
            print(f"torch.compile: {error}", file=sys.stderr)
        for kind in ("invariant", "frozen"):
            calls[kind] = step(network, kind, batch, MODES[NAME], width=width)
        calls["sgemm"] = product(multiplications(network, batch, width))
        what = f"{NAME}, {network}, width {width:g}, batch {batch}"
        compare(what, calls, "PyTorch", arguments)


if __name__ == "__main__":
    main()

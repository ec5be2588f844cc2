"""The paper's networks and recipes, ready for `model.fit`.

The networks need Keras and NumPy only. `keras_invdrop.experiments` trains them
on the paper's data sets to check the paper's results.
"""

from . import recipes as recipes
from ._maxout_cnn import CIFAR10_CONVOLUTIONS as CIFAR10_CONVOLUTIONS
from ._maxout_cnn import SVHN_CONVOLUTIONS as SVHN_CONVOLUTIONS
from ._maxout_cnn import Convolution as Convolution
from ._maxout_cnn import maxout_cnn as maxout_cnn
from ._methods import METHODS as METHODS
from ._mlp import cifar10_mlp as cifar10_mlp
from ._mlp import mas_mlp as mas_mlp
from ._mlp import mnist_mlp as mnist_mlp
from ._relu_cnn import relu_cnn as relu_cnn
from .metrics import CodeQuality as CodeQuality
from .optimizers import RampedSGD as RampedSGD
from .optimizers import WarmUp as WarmUp

# No modules except `recipes`: `import *` would put `metrics` and `optimizers`
# over those of Keras.
__all__ = [
    "CIFAR10_CONVOLUTIONS",
    "METHODS",
    "SVHN_CONVOLUTIONS",
    "CodeQuality",
    "Convolution",
    "RampedSGD",
    "WarmUp",
    "cifar10_mlp",
    "mas_mlp",
    "maxout_cnn",
    "mnist_mlp",
    "recipes",
    "relu_cnn",
]

"""The paper's networks: functions that return an uncompiled model.

All have `dropout`, one of `METHODS`, and `width`, by which the units and
feature maps of each layer but the last are multiplied.
"""

from .maxout_cnn import CIFAR10_CONVOLUTIONS as CIFAR10_CONVOLUTIONS
from .maxout_cnn import SVHN_CONVOLUTIONS as SVHN_CONVOLUTIONS
from .maxout_cnn import Convolution as Convolution
from .maxout_cnn import maxout_cnn as maxout_cnn
from .methods import METHODS as METHODS
from .mlp import cifar10_mlp as cifar10_mlp
from .mlp import mas_mlp as mas_mlp
from .mlp import mnist_mlp as mnist_mlp
from .relu_cnn import relu_cnn as relu_cnn

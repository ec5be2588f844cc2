"""The paper's data sets, networks and training, ready to run.

The data sets and the command need the extra `applications`; in a clone of the
repository, `pip install '.[applications]'`.
"""

from .metrics import CodeQuality as CodeQuality
from .networks import CIFAR10_CONVOLUTIONS as CIFAR10_CONVOLUTIONS
from .networks import METHODS as METHODS
from .networks import SVHN_CONVOLUTIONS as SVHN_CONVOLUTIONS
from .networks import Convolution as Convolution
from .networks import cifar10_mlp as cifar10_mlp
from .networks import mas_mlp as mas_mlp
from .networks import maxout_cnn as maxout_cnn
from .networks import mnist_mlp as mnist_mlp
from .networks import relu_cnn as relu_cnn

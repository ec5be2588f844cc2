"""The paper's data sets, networks and training, ready to run.

Needs the extra: `pip install keras-invdrop[applications]`.
"""

from .networks import METHODS as METHODS
from .networks import mnist_mlp as mnist_mlp

from .global_contrast_normalization import GlobalContrastNormalization
from .invariant_dropout import InvariantDropout
from .locally_connected2d import LocallyConnected2D
from .maxout import Maxout
from .maxout_conv2d import MaxoutConv2D
from .maxout_dense import MaxoutDense
from .running_average_dropout import RunningAverageDropout
from .shared_invariant_dropout import SharedInvariantDropout
from .spatial_invariant_dropout import SpatialInvariantDropout
from .stochastic_pooling2d import StochasticPooling2D
from .zca_whitening import ZCAWhitening

__all__ = [
    "GlobalContrastNormalization",
    "InvariantDropout",
    "LocallyConnected2D",
    "Maxout",
    "MaxoutConv2D",
    "MaxoutDense",
    "RunningAverageDropout",
    "SharedInvariantDropout",
    "SpatialInvariantDropout",
    "StochasticPooling2D",
    "ZCAWhitening",
]


def __dir__() -> list[str]:
    return __all__

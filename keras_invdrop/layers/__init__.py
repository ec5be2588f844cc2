from .global_contrast_normalization import (
    GlobalContrastNormalization as GlobalContrastNormalization,
)
from .invariant_dropout import InvariantDropout as InvariantDropout
from .locally_connected2d import LocallyConnected2D as LocallyConnected2D
from .maxout import Maxout as Maxout
from .maxout_conv2d import MaxoutConv2D as MaxoutConv2D
from .maxout_dense import MaxoutDense as MaxoutDense
from .running_average_dropout import (
    RunningAverageDropout as RunningAverageDropout,
)
from .shared_invariant_dropout import (
    SharedInvariantDropout as SharedInvariantDropout,
)
from .spatial_invariant_dropout import (
    SpatialInvariantDropout as SpatialInvariantDropout,
)
from .stochastic_pooling2d import StochasticPooling2D as StochasticPooling2D
from .zca_whitening import ZCAWhitening as ZCAWhitening

"""Invariant dropout (Ba, Xiong and Frey, 2014) for Keras 3."""

from . import backend as backend  # first: it says which one is missing
from . import callbacks as callbacks
from . import layers as layers
from . import models as models
from . import regularizers as regularizers
from .callbacks import BetaMonitor as BetaMonitor
from .layers import GlobalContrastNormalization as GlobalContrastNormalization
from .layers import InvariantDropout as InvariantDropout
from .layers import LocallyConnected2D as LocallyConnected2D
from .layers import Maxout as Maxout
from .layers import MaxoutConv2D as MaxoutConv2D
from .layers import MaxoutDense as MaxoutDense
from .layers import RunningAverageDropout as RunningAverageDropout
from .layers import SharedInvariantDropout as SharedInvariantDropout
from .layers import SpatialInvariantDropout as SpatialInvariantDropout
from .layers import StochasticPooling2D as StochasticPooling2D
from .layers import ZCAWhitening as ZCAWhitening
from .models import MonteCarlo as MonteCarlo
from .models import calibrate as calibrate
from .models import export as export
from .models import fold as fold
from .models import invariantize as invariantize
from .models import variance_report as variance_report

__version__ = "0.1.0"

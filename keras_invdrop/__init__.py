"""Invariant dropout (Ba, Xiong and Frey, 2014) for Keras 3."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _backend as _backend  # first, to name a missing backend
from . import callbacks as callbacks
from . import layers as layers
from . import models as models
from . import regularizers as regularizers
from .callbacks import BestEpoch as BestEpoch
from .callbacks import BetaMonitor as BetaMonitor
from .callbacks import ExactResume as ExactResume
from .callbacks import Reseed as Reseed
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
from .models import Conversion as Conversion
from .models import Exported as Exported
from .models import Folded as Folded
from .models import InjectedVariance as InjectedVariance
from .models import MonteCarlo as MonteCarlo
from .models import MonteCarloPrediction as MonteCarloPrediction
from .models import VarianceReport as VarianceReport
from .models import calibrate as calibrate
from .models import export as export
from .models import fold as fold
from .models import invariantize as invariantize
from .models import variance_report as variance_report

if TYPE_CHECKING:
    from . import plots as plots

__version__ = "0.1.0"

# No modules, which `import *` would put over Keras' modules of the same names.
__all__: list[str] = []
__all__ += callbacks.__all__
__all__ += layers.__all__
__all__ += models.__all__
# Imported on first use: `applications` imports this package, and the others
# need packages of extras.
LAZY = ("applications", "experiments", "plots")
MODULES = ("callbacks", "layers", "models", "regularizers", *LAZY)


def __dir__() -> list[str]:
    return sorted([*__all__, *MODULES, "__version__"])


# With `__getattr__`, a type checker would accept an attribute of any name.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in LAZY:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}"
            )
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            # `hasattr` and `help` expect an AttributeError.
            raise AttributeError(str(error)) from error

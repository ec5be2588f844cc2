"""Invariant dropout (Ba, Xiong and Frey, 2014) for Keras 3."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _backend as _backend  # first: it says which one is missing
from . import callbacks as callbacks
from . import layers as layers
from . import models as models
from . import regularizers as regularizers
from .callbacks import BestEpoch
from .callbacks import BetaMonitor
from .callbacks import ExactResume
from .callbacks import Reseed
from .layers import GlobalContrastNormalization
from .layers import InvariantDropout
from .layers import LocallyConnected2D
from .layers import Maxout
from .layers import MaxoutConv2D
from .layers import MaxoutDense
from .layers import RunningAverageDropout
from .layers import SharedInvariantDropout
from .layers import SpatialInvariantDropout
from .layers import StochasticPooling2D
from .layers import ZCAWhitening
from .models import Conversion
from .models import Exported
from .models import InjectedVariance
from .models import MonteCarlo
from .models import MonteCarloPrediction
from .models import calibrate
from .models import export
from .models import fold
from .models import invariantize
from .models import variance_report

if TYPE_CHECKING:
    from . import plots as plots

__version__ = "0.1.0"

# No modules: `import *` would hide Keras' modules of the same names.
__all__ = [
    "BestEpoch",
    "BetaMonitor",
    "Conversion",
    "ExactResume",
    "Exported",
    "GlobalContrastNormalization",
    "InjectedVariance",
    "InvariantDropout",
    "LocallyConnected2D",
    "Maxout",
    "MaxoutConv2D",
    "MaxoutDense",
    "MonteCarlo",
    "MonteCarloPrediction",
    "Reseed",
    "RunningAverageDropout",
    "SharedInvariantDropout",
    "SpatialInvariantDropout",
    "StochasticPooling2D",
    "ZCAWhitening",
    "calibrate",
    "export",
    "fold",
    "invariantize",
    "variance_report",
]
# Imported on first use, since they need packages of extras.
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

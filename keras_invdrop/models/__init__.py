from ._calibrate import calibrate
from ._export import Exported
from ._export import export
from ._fold import Folded
from ._fold import fold
from ._invariantize import Conversion
from ._invariantize import invariantize
from ._monte_carlo import MonteCarlo
from ._prediction import MonteCarloPrediction
from ._variance_report import InjectedVariance
from ._variance_report import VarianceReport
from ._variance_report import variance_report

__all__ = [
    "Conversion",
    "Exported",
    "Folded",
    "InjectedVariance",
    "MonteCarlo",
    "MonteCarloPrediction",
    "VarianceReport",
    "calibrate",
    "export",
    "fold",
    "invariantize",
    "variance_report",
]


def __dir__() -> list[str]:
    return __all__

from .calibrate import calibrate
from .export import export
from .fold import fold
from .invariantize import invariantize
from .monte_carlo import MonteCarlo
from .variance_report import variance_report

__all__ = [
    "MonteCarlo",
    "calibrate",
    "export",
    "fold",
    "invariantize",
    "variance_report",
]


def __dir__() -> list[str]:
    return __all__

from .best_epoch import BestEpoch
from .beta_monitor import BetaMonitor
from .exact_resume import ExactResume
from .reseed import Reseed

__all__ = ["BestEpoch", "BetaMonitor", "ExactResume", "Reseed"]


def __dir__() -> list[str]:
    return __all__

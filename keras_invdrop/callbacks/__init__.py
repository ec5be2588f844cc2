from .beta_monitor import BetaMonitor

__all__ = ["BetaMonitor"]


def __dir__() -> list[str]:
    return __all__

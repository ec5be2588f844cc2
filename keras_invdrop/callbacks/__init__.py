from .beta_monitor import BetaMonitor as BetaMonitor

from .calibrate import calibrate as calibrate
from .export import export as export
from .fold import fold as fold
from .invariantize import invariantize as invariantize
from .monte_carlo import MonteCarlo as MonteCarlo
from .variance_report import variance_report as variance_report

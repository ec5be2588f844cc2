from .calibrate import calibrate as calibrate
from .invariantize import invariantize as invariantize
from .variance_report import variance_report as variance_report

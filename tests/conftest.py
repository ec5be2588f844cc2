def pytest_terminal_summary(terminalreporter):
    """Prints what tests have recorded with `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")

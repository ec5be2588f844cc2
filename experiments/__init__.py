"""Checks the paper: trains the rows of its tables and reports the results.

The experiments need the extra `experiments` (docs/installation.md). Each part
imports only parts further down this list:

    command_line    the command
    runners         many trainings: pool, search, demonstration
    train           one training
    results         saved results, tables, figures, reports
    data, paper     data sets; the rows of the paper's tables
"""

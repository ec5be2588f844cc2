"""Checks the paper: trains the rows of its tables and reports the results.

The experiments need the extra `experiments` (docs/installation.md). Each part
imports only parts further down this list:

    command_line    the command
    options         the options of the command, from typed classes
    runners         many trainings: reproduce, search, demo; trials, pool
    train           one training
    results         saved results, tables, figures, reports
    data, paper     data sets; the rows of the paper's tables

Its words:

    row         a line of a table of the paper, with the recipe of its training
    trial       a training: a row with one seed and the settings of `Trial`.
                Where Optuna searches, a trial is Optuna's: settings that it
                tries in one or several trainings
    run         what carries a trial out, or finishes it, and writes its files
    search      trials of Optuna, which select settings by validation
"""

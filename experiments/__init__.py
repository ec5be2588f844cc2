"""Checks the paper: trains the rows of its tables, and reports the results.

It needs the extra `experiments`; in a clone of the repository,
`pip install '.[experiments]'`. The command `keras-invdrop` leads through its
rooms, of which each imports only those below it:

    command_line    the command
    runners         many trainings: pool, search, demonstration
    train           one training
    results         what is kept and shown of trainings
    data, paper     data sets; the rows of the paper's tables
"""

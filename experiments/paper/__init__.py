"""The paper: the rows of its tables, and its claims."""

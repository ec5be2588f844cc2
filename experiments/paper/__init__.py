"""The paper: the rows of its tables."""

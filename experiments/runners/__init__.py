"""Many trainings: pool, search, demonstration."""

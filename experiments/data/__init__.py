"""Data sets, and how they are prepared."""

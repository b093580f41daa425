"""Loci: one budget, three kinds of memory, every tier."""

__version__ = "0.1.0"

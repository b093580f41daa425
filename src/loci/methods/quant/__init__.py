"""Quantisation: weights in fewer bits."""

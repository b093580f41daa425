"""Offloading: which blocks of weights stay, which are streamed."""

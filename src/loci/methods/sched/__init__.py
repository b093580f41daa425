"""Schedulers: which request does what in the next step."""

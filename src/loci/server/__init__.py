"""The server: one model for many clients, over the protocols they already speak.

This is one of two rooms with `async`; what takes time is done in threads, and the model has its
own.
"""

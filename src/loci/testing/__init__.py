"""Conformance suites and tiny models; only tests and benchmarks import them."""

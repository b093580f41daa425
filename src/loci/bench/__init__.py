"""Benchmarks: suites, metrics, and the runner that prints ratios to rivals."""

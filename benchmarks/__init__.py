"""Benchmarks: a correctness gate first, then the measured ratio. ``python -m benchmarks.<name> --help``."""

"""Benchmarks of speed and memory, compared with plain ways to do the same work."""

"""Comparison of encoders on held-out products."""

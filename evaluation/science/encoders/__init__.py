"""Encoders side by side on held-out products."""

"""Importers: one module per format, from a folder to canonical tables and their configuration."""

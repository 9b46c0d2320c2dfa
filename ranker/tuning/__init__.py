"""The search for a ranker's settings."""

"""The only folder that ``feast apply`` reads inside ``feature_repo/``."""

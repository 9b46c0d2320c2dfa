"""What ``feast apply`` reads inside ``feature_repo/``; everything else there is the package."""

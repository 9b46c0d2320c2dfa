"""Training examples: the catalogue in memory, pairs, cleaning rules, negatives, augmentation."""

"""What training sees: the catalogue in memory, pairs, cleaning rules, negatives, augmentation."""

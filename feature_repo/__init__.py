"""Everything Feast: definitions that ``feast apply`` reads, and the offline and online doors to the store."""

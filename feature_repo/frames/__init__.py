"""Point-in-time training frames: joined, in shards, from what was logged."""

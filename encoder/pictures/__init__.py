"""From encoded pictures to pixels: decoding, the core region, the cache."""

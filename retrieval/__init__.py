"""A request becomes candidates: exact and approximate search, item-to-item, query-to-item."""

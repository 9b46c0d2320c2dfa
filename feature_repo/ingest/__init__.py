"""Events and items received while the service runs: stored durably, written online, folded into the offline log."""

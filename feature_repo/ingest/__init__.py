"""What comes in while the shop runs: events and items, kept, put online, folded into the log."""

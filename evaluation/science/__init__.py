"""What the papers measure, on any dataset."""

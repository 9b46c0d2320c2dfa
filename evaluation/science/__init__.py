"""The measurements of the papers, on any dataset."""

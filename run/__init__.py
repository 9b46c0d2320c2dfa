"""The base layer: a run on disk, its artifacts and generations, progress of long work; knows no model."""

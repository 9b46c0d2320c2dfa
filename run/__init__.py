"""The ground: what a run is on disk, and how long work is written, shown and resumed; knows no model."""

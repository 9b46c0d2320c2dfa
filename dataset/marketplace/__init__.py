"""The simulated shop: a catalogue with generated pictures and texts, users with planted tastes, their events."""

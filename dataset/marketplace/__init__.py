"""The simulated shop: a catalogue drawn in pixels and words, shoppers with planted tastes, their behaviour."""

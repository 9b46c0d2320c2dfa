"""Pretrained towers, one for pictures and one for texts: their features are read once, until a stage trains them."""

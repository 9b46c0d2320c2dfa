"""Pretrained towers, one for pictures and one for texts, whose features are read once and never trained."""

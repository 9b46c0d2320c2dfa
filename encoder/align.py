from dataclasses import dataclass


@dataclass(frozen=True)
class Align:
    share: float
    intra: bool
    augmented: bool
    filtered: bool
    name: str = "align"

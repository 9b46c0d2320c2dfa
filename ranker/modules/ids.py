"""Ids: the id embeddings of request and candidate."""

from __future__ import annotations

from torch import Tensor

from ranker.modules.module import Module, Output, Widths


class Ids(Module):
    """The id embeddings themselves, of candidate and request."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.per_candidate, self.per_request = widths.item, widths.user

    def forward(self, item_RNI: Tensor, user_RU: Tensor) -> Output:
        """The embeddings as they are."""
        return Output(item_RNI, user_RU)

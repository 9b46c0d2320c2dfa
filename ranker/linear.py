"""Log-odds that are linear in the numbers of a candidate and its request: where a click model begins.

Of a few thousand labels a network that is trained by steps finds less than regression, and stops before it has found
that (docs/log/ranker.md#beginning-at-logistic-regression). So regression (``ranker.regression``) is the first thing
that the model says; the more there is to learn, the less it matters.

Legend: R requests, N candidates, F numbers of a candidate, G numbers of a request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.inputs.batch import Batch


class LinearPath(nn.Module):
    """The weights of all numbers, and what a search adds; zero before it begins.

    Args:
        candidate: F.
        request: G.
    """

    def __init__(self, candidate: int, request: int) -> None:
        super().__init__()
        self.candidate = nn.Parameter(torch.zeros(candidate))
        self.request = nn.Parameter(torch.zeros(request))
        self.bias, self.searched = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Tensor:
        """Float32 [R, N]."""
        of_request = batch.request_numbers @ self.request + self.searched * batch.query_known
        said: Tensor = batch.candidate_numbers @ self.candidate + self.bias
        return said + of_request[:, None]

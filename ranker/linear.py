"""Where a click model begins: at the logistic regression of its own numbers, to which the network adds.

Of a few thousand labels a network that is trained by steps finds less than regression, and stops before it has found
that (docs/log/ranker.md#beginning-at-logistic-regression). So regression is the first thing that the model says; the
more there is to learn, the less it matters.

Legend: R requests, N candidates, F numbers of a candidate, G numbers of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from ranker.inputs.batch import Batch

READ = 50_000  # candidates at most among which are those that the regression is fitted to
FOLDS = 5  # of the candidates: by their loss under the others' weights, the shrinkage is chosen
SHRINKAGES = [0.001, 0.01, 0.1, 1.0]  # C of scikit-learn: the smaller, the nearer are the weights to zero


class LinearPath(nn.Module):
    """Log-odds that are linear in the numbers of a candidate and its request; zero before it begins.

    It begins at what requests without a search say: weights that hold among items that answer a search are wrong
    between items at all (docs/log/ranker.md#a-regression-of-requests-without-a-search).

    Args:
        candidate: F.
        request: G.
    """

    def __init__(self, candidate: int, request: int) -> None:
        super().__init__()
        self.candidate = nn.Parameter(torch.zeros(candidate))
        self.request = nn.Parameter(torch.zeros(request))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Tensor:
        """Float32 [R, N]."""
        said: Tensor = batch.candidate_numbers @ self.candidate + self.bias
        return said + (batch.request_numbers @ self.request)[:, None]

    def begin(self, batches: Iterable[Batch]) -> None:
        """Take the weights of a regression of the labels on the numbers, of requests without a search.

        Its shrinkage is the strongest of SHRINKAGES that predicts held-out folds as well as the best one. Where there
        are no numbers, or fewer positives or negatives than folds, the rate of all labels is all it says.

        Args:
            batches: to learn from, in random order; no more than needed are read.
        """
        numbers, liked, searched = _read(batches)
        rate = np.log((liked.sum() + 1) / ((~liked).sum() + 1))
        numbers, liked = numbers[~searched], liked[~searched]
        with torch.no_grad():
            if not numbers.shape[1] or min(liked.sum(), (~liked).sum()) < FOLDS:
                self.bias.fill_(float(rate))
                return
            regression = LogisticRegression(max_iter=300)
            search = GridSearchCV(
                regression, {"C": SHRINKAGES}, scoring="neg_log_loss", cv=FOLDS, refit=_most_shrunk
            )
            found = search.fit(numbers, liked).best_estimator_
            weights = torch.from_numpy(found.coef_[0]).to(self.bias)
            self.candidate.copy_(weights[: len(self.candidate)])
            self.request.copy_(weights[len(self.candidate) :])
            self.bias.fill_(float(found.intercept_[0]))


def _most_shrunk(found: Mapping[str, np.ndarray]) -> int:
    """The first shrinkage that is behind the best by no more than a standard error of what they differ by over folds.

    Breiman et al., Classification and Regression Trees, 1984, section 3.4.3: of few positives the best is chance.
    """
    scores = np.stack([found[f"split{fold}_test_score"] for fold in range(FOLDS)])
    behind = scores[:, [scores.mean(axis=0).argmax()]] - scores
    return int(np.argmax(behind.mean(axis=0) <= behind.std(axis=0, ddof=1) / np.sqrt(FOLDS)))


def _read(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of candidates and requests, float32 (C, F + G), whether each is liked and searched for, bool (C)."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    found = 0
    for batch in batches:
        mask, many = batch.candidate_mask, batch.candidate_numbers.shape[1]
        request = batch.request_numbers[:, None].expand(-1, many, -1)
        of_both = torch.cat([batch.candidate_numbers, request], dim=-1)[mask]
        parts.append((of_both, batch.label[mask] > 0, batch.query_known[:, None].expand(-1, many)[mask]))
        found += len(of_both)
        if found >= READ:
            break
    numbers, liked, searched = (torch.cat(of)[:READ].numpy() for of in zip(*parts, strict=True))
    return numbers, liked, searched

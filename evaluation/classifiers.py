"""Classifiers on frozen vectors: nearest prototype, class means, linear probe; and their accuracy, precision and F1.

Shapes: N vectors, D vector width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

# Of the L2 penalty; on 4,000 items of H&M 1e-5 is as good and 1e-3 worse, for colours and words.
STRENGTH = 1e-4
MOST_STEPS = 60  # of L-BFGS; 200 steps change accuracies by .004 at most (H&M)


def nearest(vectors_ND: np.ndarray, prototypes_CD: np.ndarray) -> np.ndarray:
    """The prototype with the highest cosine to each vector, int64 (N); ties: the first."""
    norm = np.linalg.norm(prototypes_CD, axis=1, keepdims=True)
    return np.argmax(vectors_ND @ (prototypes_CD / np.where(norm > 0, norm, 1)).T, axis=1)


def class_means(vectors_ND: np.ndarray, label_N: np.ndarray, classes: int) -> np.ndarray:
    """Mean vector of each class, float32 (C, D); each class needs at least one vector.

    Args:
        vectors_ND: float32, unit rows.
        label_N: int64, 0 .. C - 1.
        classes: C.
    """
    total = np.zeros((classes, vectors_ND.shape[1]))
    np.add.at(total, label_N, vectors_ND)
    return (total / np.bincount(label_N, minlength=classes)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on frozen vectors.

    Attributes:
        centre: float32 (D), mean of the training vectors.
        scale: makes the mean squared norm of the centred training vectors 1, so that one penalty suits encoders with
            spread-out and with concentrated vectors.
        weight: float32 (C, D).
        bias: float32 (C).
    """

    centre: np.ndarray
    scale: float
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls,
        vectors_ND: np.ndarray,
        label_N: np.ndarray,
        classes: int,
        strength: float = STRENGTH,
    ) -> LinearProbe:
        """Minimise mean cross-entropy + strength / 2 * |W|^2 (the bias is free) by L-BFGS on all items at once.

        The same objective as scikit-learn's ``LogisticRegression(C=1 / (N * strength))``.

        Args:
            vectors_ND: float32.
            label_N: int64, 0 .. C - 1.
            classes: C.
            strength: of the penalty; the papers give none (not recovered).
        """
        centre = vectors_ND.mean(axis=0)
        spread = float(np.mean(np.sum((vectors_ND - centre) ** 2, axis=1)))
        scale = spread**-0.5 if spread > 0 else 1.0
        centred = vectors_ND - centre
        varying = np.flatnonzero(
            centred.any(axis=0)
        )  # skip constant columns, e.g. words that occur in no title
        x = torch.from_numpy((centred[:, varying] * scale).astype(np.float32))
        y = torch.from_numpy(label_N.astype(np.int64))
        weight = torch.zeros(classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

        def objective() -> torch.Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()
            loss.backward()
            return loss

        solver.step(objective)  # type: ignore[arg-type]
        whole = np.zeros((classes, vectors_ND.shape[1]), dtype=np.float32)
        whole[:, varying] = weight.detach().numpy()
        return cls(centre, scale, whole, bias.detach().numpy())

    def predict(self, vectors_ND: np.ndarray) -> np.ndarray:
        """The likeliest class of each vector, int64 (N)."""
        return np.argmax((vectors_ND - self.centre) * self.scale @ self.weight.T + self.bias, axis=1)


def macro_scores(truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes that occur in ``truth``.

    A class never answered has precision 0; F1 = 2PR / (P + R), 0 when both are 0.

    Args:
        truth, answer: int64 of one shape, at least one row.
    """
    present = np.unique(truth)
    hit = np.array([np.sum((truth == one) & (answer == one)) for one in present])
    answered = np.array([np.sum(answer == one) for one in present])
    occurring = np.array([np.sum(truth == one) for one in present])
    return {
        "accuracy": float(np.mean(truth == answer)),
        "macro_precision": float(np.mean(hit / np.maximum(answered, 1))),
        "macro_recall": float(np.mean(hit / occurring)),
        "macro_f1": float(np.mean(2 * hit / (answered + occurring))),
    }

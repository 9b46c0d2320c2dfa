"""The objectives of MOON2.0 (§3.3): alignment between and within products, and their weighted sum.

Shapes: B triplets, D vector width, N further negatives.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from encoder.losses.info_nce import TEMPERATURE, one_way_info_nce

# Not recovered. Switch Transformer (2101.03961) weights its balance loss by 0.01; the sparsity term is also meant as
# a weak regulariser beside the alignment losses.
RHO, SIGMA = 0.01, 0.01


def inter_loss(
    query_BD: Tensor,
    positive_BD: Tensor,
    masked_BB: Tensor,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """A query, in one modality, chooses its positive among full products (MOON2.0 §3.3, L_inter of one modality).

    L = -log exp(r_q r_p / e) / (exp(r_q r_p / e) + sum over N_q of exp(r_q r_n / e)), from query to products
    only. The vectors are compared by cosine; e is not recovered. N_q: the triplets' negatives, given as
    ``negatives_ND``, and the other positives of the batch (which of these the paper uses is not recovered).

    Args:
        query_BD: float, queries as text, image or both.
        positive_BD: float, their positives, always with text and image.
        masked_BB, negatives_ND, masked_negatives_BN: as in ``info_nce.candidates``.
        weight_B: float, weight of each triplet (``filtering.triplet_weights``).
        temperature: e.
    """
    return one_way_info_nce(
        query_BD, positive_BD, masked_BB, temperature, negatives_ND, masked_negatives_BN, weight_B
    )


def intra_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    masked_BB: Tensor,
    weight_B: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The image of a product chooses its own text among the texts of other products (MOON2.0 §3.3, L_intra).

    From image to text only. Computed once on the positives and once on the negatives of the triplets. The paper's
    formula has one other product; here all others of the batch are negatives. The temperature is not recovered.

    Args:
        image_BD, text_BD: float, both views of the same products.
        masked_BB: bool, true where the text fits another product's image too (same text, same SPU).
        weight_B: float, weight of each product.
        temperature: e~.
    """
    return one_way_info_nce(image_BD, text_BD, masked_BB, temperature, weight_B=weight_B)


def total(
    losses: Mapping[str, Tensor],
    omega: Mapping[str, Tensor],
    balance: Tensor,
    sparsity: Tensor,
    rho: float = RHO,
    sigma: float = SIGMA,
) -> Tensor:
    """L_total = sum_m omega_m L_m + rho L_aux + sigma L_sparsity (MOON2.0 §3.2, §3.3).

    Args:
        losses: the objectives computed on this batch, by name: at most three inter and two intra.
        omega: loss weight of each objective; objectives without a loss in this batch are ignored.
        balance: L_aux, the experts' load-balancing loss.
        sparsity: L_sparsity, the mean entropy of each expert's distribution over the objectives.
        rho, sigma: loss weights of the two; not recovered.

    Raises:
        KeyError: a loss has no weight.
    """
    aligned = sum((omega[name] * loss for name, loss in losses.items()), start=balance.new_zeros(()))
    return aligned + rho * balance + sigma * sparsity

"""Id tables: TorchRec collections whose rows are updated inside the backward pass.

Every id, of a candidate or of a behaviour, is a bag of one in a pooled collection. TorchRec's collection for
sequences asserts on CPU when its optimizer is fused, and FBGEMM's unpooled kernel is 5 to 27 times slower
there; a bag of one gives the same rows and the same updates. An empty slot is an empty bag: zeros.

A fused update happens during ``backward``: a training loop must refuse a loss that is not finite before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from ranker.inputs.batch import Batch

SPREAD = 0.01  # uniform initial values: an untrained id has almost no effect


def bag_configs(rows: Mapping[str, int], width: int) -> list[EmbeddingBagConfig]:
    """One summed table per name, ``rows[name]`` x ``width``."""
    return [
        EmbeddingBagConfig(
            name=f"t_{name}",
            feature_names=[name],
            num_embeddings=count,
            embedding_dim=width,
            pooling=PoolingType.SUM,
            init_fn=None,
            weight_init_min=-SPREAD,
            weight_init_max=SPREAD,
        )
        for name, count in rows.items()
    ]


def collection(
    rows: Mapping[str, int], width: int, learning_rate: float
) -> FusedEmbeddingBagCollection | None:
    """Tables that learn by row-wise Adagrad (one accumulator per row) during ``backward``; None without any."""
    if not rows:
        return None
    return FusedEmbeddingBagCollection(
        tables=bag_configs(rows, width),
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": learning_rate, "eps": 1e-8},
    )


def lookup(tables: nn.Module | None, ids: KeyedJaggedTensor) -> Tensor:
    """Embeddings side by side in the order of the tables, float32 [bags, tables x width]."""
    if tables is None:
        return torch.zeros(ids.stride(), 0, device=ids.values().device)
    return tables(ids).values()


class IdTables(nn.Module):
    """All id embeddings of a ranker.

    Args:
        items: rows of the item table, shared by candidates and behaviours.
        candidates: rows of each table of candidate ids.
        requests: rows of each table of request ids.
        behaviours: rows of the tables of behaviour code and age.
        width: of every embedding.
        learning_rate: of row-wise Adagrad.
    """

    def __init__(
        self,
        items: Mapping[str, int],
        candidates: Mapping[str, int],
        requests: Mapping[str, int],
        behaviours: Mapping[str, int],
        width: int,
        learning_rate: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.items = collection(items, width, learning_rate)
        self.candidates = collection(candidates, width, learning_rate)
        self.requests = collection(requests, width, learning_rate)
        self.behaviours = collection(behaviours, width, learning_rate)

    def item_and_history(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of the candidates [R, N, d] and of the behaved items [R, L, d]."""
        requests, slots, memory = batch.shape
        both = lookup(self.items, batch.items)
        targets, behaved = both.split([requests * slots, requests * memory])
        return targets.view(requests, slots, self.width), behaved.view(requests, memory, self.width)

    def candidate(self, batch: Batch) -> Tensor:
        """Embeddings of the candidates' other ids side by side, [R, N, keys x d]."""
        requests, slots, _ = batch.shape
        found = lookup(self.candidates, batch.candidates)
        return found.view(requests, slots, found.shape[1])

    def request(self, batch: Batch) -> Tensor:
        """Embeddings of the request's ids side by side, [R, keys x d]."""
        return lookup(self.requests, batch.requests)

    def behaviour(self, batch: Batch) -> Tensor:
        """What each behaviour was, how long ago and what is known of its item, summed, [R, L, d]."""
        requests, _, memory = batch.shape
        every = lookup(self.behaviours, batch.behaviours)
        # One after the other: a sum over a dimension this short takes five times as long.
        return reduce(torch.add, every.view(requests, memory, -1, self.width).unbind(dim=2))


def is_table(name: str) -> bool:
    """Whether the parameter of this name belongs to a table that updates itself."""
    return ".embedding_bags." in f".{name}"

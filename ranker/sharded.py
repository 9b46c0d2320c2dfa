"""A click model whose id tables are divided among ranks by TorchRec's DistributedModelParallel.

The model is the one that trains in one process; what differs is where the rows of its tables lie:

- row-wise: every rank holds an equal part of a table's rows;
- table-wise: every rank holds whole tables;
- data-parallel: every rank holds all of a table, and the ranks average its gradient as that of dense weights.

Checkpoints hold whole tables, whoever wrote them, so they open in any number of processes, and the ranker that comes
of them is served as any other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from ranker.inputs.batch import Batch
from ranker.inputs.id_tables import is_table
from ranker.learner import WEIGHTS, Learner, Saved, accumulator, adam_of
from ranker.model import ClickModel, WithPosition
from ranker.ranks import Share

SMALL = (
    4096  # rows up to which every rank holds all of a table: its gradients cost less than sending its rows
)
ROW_WISE, TABLE_WISE, EVERYWHERE = (
    ShardingType.ROW_WISE.value,
    ShardingType.TABLE_WISE.value,
    ShardingType.DATA_PARALLEL.value,
)
SHARDER = EmbeddingBagCollectionSharder()
# Said of tables that all ranks hold, on CPU; tests/test_ranks.py holds them to be right.
warnings.filterwarnings("ignore", "fbgemm::dense_embedding_codegen_lookup_function")


class Collection(nn.Module):
    """A sharded collection that is asked, and answers, as one in one process."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Embeddings of as many bags as ``ids`` has, side by side in the order of its keys.

        Gloo gathers tensors of equal size only, so all ranks ask for as many bags as the one that asks for most, the
        further ones empty. And shards answer in the order of the plan.
        """
        keys, bags = ids.keys(), ids.stride()
        asked = torch.tensor(bags, device=ids.values().device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        most = int(asked)
        lengths = functional.pad(ids.lengths().view(len(keys), bags), (0, most - bags)).flatten()
        found = self.tables(KeyedJaggedTensor(keys, ids.values(), lengths=lengths, stride=most))
        values = [found[key][:bags] for key in keys]
        return KeyedTensor(keys, [value.shape[1] for value in values], torch.cat(values, dim=1))


@dataclass(frozen=True)
class Table:
    """A table of which this rank holds some rows, none, or all.

    Attributes:
        name: of the weight in a checkpoint.
        memory: name of its accumulator in a checkpoint.
        weight: the own rows, live, float32 [rows, width].
        accumulator: of the own rows, live, float32 [rows].
        parts: (rank, first row, row behind the last) of all that make up the table.
        own: first row of this rank, and the row behind its last.
    """

    name: str
    memory: str
    weight: Tensor
    accumulator: Tensor
    parts: tuple[tuple[int, int, int], ...]
    own: slice

    def is_here(self) -> bool:
        """Whether this rank holds any of it."""
        return bool(self.own.stop > self.own.start)


class ShardedModel(nn.Module):
    """A click model whose tables lie on several ranks.

    Args:
        model: whole; taken apart: the rows of this rank take the place of its tables.
        share: of this rank.
        sharding: how all tables are divided, ``row_wise``, ``table_wise`` or ``data_parallel``; None: small ones
            data-parallel, the others row-wise, so that no rank holds more than another.

    Attributes:
        dense: the other weights, by their names in ``model``.
        tables: what this rank holds of them.
        everywhere: the optimizer of the tables that all ranks hold, which no kernel updates in ``backward``; None
            where there are none.
    """

    def __init__(self, model: ClickModel, share: Share, sharding: str | None = None) -> None:
        super().__init__()
        self.share = share
        whole = dict(model.named_parameters())
        fused = {n: m for n, m in model.named_modules() if isinstance(m, FusedEmbeddingBagCollection)}
        plans = {place: _divide(model, place, one, share, sharding) for place, one in fused.items()}
        self.parallel = DistributedModelParallel(
            WithPosition(model),
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=share.device,
            plan=ShardingPlan({f"model.{place}.tables": plan for place, plan in plans.items()}),
            sharders=[SHARDER],
        )
        parameters = dict(self.parallel.named_parameters())
        self.dense = [(n.removeprefix("model."), p) for n, p in parameters.items() if not is_table(n)]
        every = [(place, name, one) for place, plan in plans.items() for name, one in plan.items()]
        held = [parameters[_inside(place, name)] for place, name, one in every if _is_everywhere(one)]
        rates = next(iter(fused.values())).optimizer_kwargs() if held else {}
        self.everywhere = RowWiseAdagrad(held, **rates) if held else None
        self.tables = [self._table(place, name, one, parameters) for place, name, one in every]
        with torch.no_grad():  # DistributedModelParallel takes over no weight of a table on CPU
            for table in filter(Table.is_here, self.tables):
                table.weight.copy_(whole[table.name][table.own])

    def forward(self, batch: Batch) -> Tensor:
        """Logits with the effect of the logged place, float32 [R, N]."""
        logit: Tensor = self.parallel(batch)
        return logit

    def _table(
        self, place: str, name: str, plan: ParameterSharding, parameters: dict[str, nn.Parameter]
    ) -> Table:
        inside = _inside(place, name)
        weight = parameters[inside].detach()
        if self.everywhere is not None and _is_everywhere(plan):
            parts: tuple[tuple[int, int, int], ...] = ((0, 0, len(weight)),)
            own = slice(0, len(weight))
            memory: Tensor = self.everywhere.state[parameters[inside]]["sum"][:, 0]
        else:
            assert plan.sharding_spec is not None
            shards = plan.sharding_spec.shards
            bounds = [(one.shard_offsets[0], one.shard_offsets[0] + one.shard_sizes[0]) for one in shards]
            parts = tuple((one.placement.rank(), *rows) for one, rows in zip(shards, bounds, strict=True))
            own = next((slice(a, b) for rank, a, b in parts if rank == self.share.rank), slice(0, 0))
            weight = weight.view(
                -1, shards[0].shard_sizes[1]
            )  # of a table held elsewhere it is a bare empty tensor
            state: dict[str, Any] = self.parallel.fused_optimizer.state_dict()["state"]
            holds = own.stop > own.start
            memory = (
                state[inside][f"{name}.momentum1"].local_shards()[0].tensor if holds else weight.new_empty(0)
            )
        stored = f"{place}.embedding_bags.{name}.weight"
        return Table(stored, accumulator(place, name), weight, memory, parts, own)


class ShardedLearner(Learner):
    """A sharded model while it trains; the first rank gathers its tables and writes the checkpoints."""

    def __init__(self, model: ShardedModel, learning_rate: float, weight_decay: float = 0.01) -> None:
        self.sharded, self.share = model, model.share
        self.saves = self.share.rank == 0
        self.dense = model.dense
        self.adam = adam_of(self.dense, learning_rate, weight_decay)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters by name, on the first rank; on the others nothing."""
        found = {table.name: self._whole(table, table.weight) for table in self.sharded.tables}
        found |= {name: p.detach().cpu().clone().contiguous() for name, p in self.dense}
        return found if self.saves else {}

    def put(self, weights: dict[str, Tensor]) -> None:
        """Nothing: the ranks end with their last epoch, and the best one is read from the checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """As of ``Learner``, on the first rank; on the others nothing."""
        weights = self.weights()
        memory = {table.memory: self._whole(table, table.accumulator) for table in self.sharded.tables}
        if not self.saves:
            return {}
        return {WEIGHTS + name: tensor for name, tensor in weights.items()} | memory | self._moments()

    def restore(self, saved: Saved) -> None:
        """As of ``Learner``; of each table only the own rows are read."""
        with torch.no_grad():
            for name, parameter in self.dense:
                parameter.copy_(saved.get_tensor(WEIGHTS + name))
            for table in filter(Table.is_here, self.sharded.tables):
                table.weight.copy_(saved.get_slice(WEIGHTS + table.name)[table.own])
                table.accumulator.copy_(saved.get_slice(table.memory)[table.own])
        self._put_moments(saved)

    def mean(self, value: float) -> float:
        """The mean of a number over the ranks."""
        return self.share.total(value) / self.share.ranks

    def agreed(self, due: bool) -> bool:
        """Whether it is due in any rank."""
        return self.share.total(float(due)) > 0

    def _zero_grad(self) -> None:
        super()._zero_grad()
        if self.sharded.everywhere is not None:
            self.sharded.everywhere.zero_grad()

    def _move(self) -> None:
        super()._move()
        if self.sharded.everywhere is not None:
            self.sharded.everywhere.step()

    def _whole(self, table: Table, own: Tensor) -> Tensor:
        """The rows of a table, or of its accumulator, from the ranks that hold them; on the first rank."""
        found = []
        for rank, first, last in table.parts:
            if rank == self.share.rank == 0:
                found.append(own.detach().clone())
            elif self.saves:
                found.append(own.new_empty(last - first, *own.shape[1:]))
                dist.recv(found[-1], src=rank)
            elif rank == self.share.rank:
                dist.send(own.detach().contiguous(), dst=0)
        return torch.cat(found).cpu() if found else own


def _divide(
    model: ClickModel, place: str, fused: FusedEmbeddingBagCollection, share: Share, sharding: str | None
) -> EmbeddingModuleShardingPlan:
    """Put a collection without rows in the place of one with, and plan where its rows go."""
    configs = fused.embedding_bag_configs()
    tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    chosen = {}
    for number, one in enumerate(configs):
        kind = sharding or (EVERYWHERE if one.num_embeddings <= SMALL else ROW_WISE)
        if (
            kind != EVERYWHERE
        ):  # before the plan, which else chooses a kernel that leaves the rows as they are
            weight = tables.embedding_bags[one.name].weight
            rates = dict(fused.optimizer_kwargs())  # a copy: what is given is emptied
            apply_optimizer_in_backward(fused.optimizer_type(), [weight], rates)
        ways = {
            ROW_WISE: row_wise(),
            TABLE_WISE: table_wise(rank=number % share.ranks),
            EVERYWHERE: data_parallel(),
        }
        chosen[one.name] = ways[kind]
    plan = construct_module_sharding_plan(
        tables,
        chosen,
        sharder=SHARDER,
        local_size=share.ranks,
        world_size=share.ranks,
        device_type=share.device.type,
    )
    model.set_submodule(place, Collection(tables))
    return plan


def _is_everywhere(plan: ParameterSharding) -> bool:
    return plan.sharding_type == EVERYWHERE


def _inside(place: str, name: str) -> str:
    """Name of a table's weight in DistributedModelParallel."""
    return f"model.{place}.tables.embedding_bags.{name}.weight"

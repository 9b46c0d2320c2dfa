"""The DIN of other libraries, and ours of equal shape, behind one interface: an epoch of training, and scores.

Embeddings of 16 numbers for user, item and category, an attention perceptron of 64 and 16 over the behaviours' items,
a deep one of 512, 256 and 128. Adam or AdamW moves the dense weights. The others are given padded tensors that lie in
memory, in batches that cost them nothing to read; ours reads the columns of the file through its ``FrameEncoder``.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from dataset.contracts import TIME
from evaluation.bench.impressions import Impressions
from feature_repo.frame import Frame, History
from feature_repo.signature import Feature, Signature
from ranker.inputs.batch import Batch
from ranker.inputs.columns import USER_ID, learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.learner import Learner
from ranker.losses import training_loss
from ranker.model import ClickModel
from ranker.modules.din import Din
from ranker.modules.ids import Ids
from ranker.ranks import ALL
from ranker.recipes import Recipe
from ranker.score import CtrConfig, Ranker

WIDTH, ATTENTION, DEEP = 16, (64, 16), (512, 256, 128)
BATCH = 1024  # impressions of a training step
# FuxiCTR imports Ray, which make setup-ray installs with what it needs.
INSTALL = (
    "make setup-ray && .venv/bin/pip install --no-deps "
    "torch-rechub==0.9.0 fuxictr==2.3.10 polars polars-runtime-32 h5py"
)
NOW_US, MINUTE_US = 1_700_000_000_000_000, 60_000_000


class Contestant(Protocol):
    """A DIN that can be trained and asked."""

    def epoch(self, seed: int) -> None:
        """Train once on all impressions, shuffled."""
        ...

    def scores(self, part: pa.Table) -> np.ndarray:
        """Log-odds or probabilities of a click, float [rows]."""
        ...


class Rechub:
    """torch-rechub: its DIN, trained by its trainer.

    Args:
        given: what to train on.
        seed: of the initial weights.
        learning_rate: of Adam on all weights.
    """

    needs = ("torch_rechub.models.ranking", "torch_rechub.trainers", "torch_rechub.basic.features")

    def __init__(self, given: Impressions, seed: int, learning_rate: float) -> None:
        ranking, trainers, features = (importlib.import_module(name) for name in self.needs)
        torch.manual_seed(seed)
        self.columns = padded(given.train, given.longest)
        spread = {
            "initializer": importlib.import_module("torch_rechub.basic.initializers").RandomNormal(0, 0.01)
        }
        one = {
            name: features.SparseFeature(name, count + 1, WIDTH, **spread)
            for name, count in sizes(given).items()
        }
        behaved = features.SequenceFeature(
            "history", given.items + 1, WIDTH, "concat", "item_id", padding_idx=0, **spread
        )
        model = ranking.DIN(
            [one["user_id"], one["category"]],
            [behaved],
            [one["item_id"]],
            {"dims": list(DEEP)},
            {"dims": list(ATTENTION), "activation": "dice"},
        )
        self.trainer = trainers.CTRTrainer(model, optimizer_params={"lr": learning_rate}, n_epoch=1)

    def epoch(self, seed: int) -> None:
        """As of ``Contestant``."""
        self.trainer.train_one_epoch(_Batches(self.columns, seed, _with_label))

    def scores(self, part: pa.Table) -> np.ndarray:
        """As of ``Contestant``."""
        self.trainer.model.eval()
        columns = padded(part, self.columns["history"].shape[1])
        with torch.no_grad():
            found = [self.trainer.model(x) for x, _ in _Batches(columns, None, _with_label)]
        return torch.cat(found).numpy()


class Fuxi:
    """FuxiCTR: the DIN of its LongCTR models, trained by its own loop; arguments as of ``Rechub``."""

    needs = ("model_zoo.LongCTR.DIN", "fuxictr.features")

    def __init__(self, given: Impressions, seed: int, learning_rate: float) -> None:
        din, features = (importlib.import_module(name) for name in self.needs)
        torch.manual_seed(seed)
        self.columns = padded(given.train, given.longest)
        fields = features.FeatureMap("generated", "")
        for name, count in sizes(given).items():
            source = "item" if name == "item_id" else "user"
            fields.features[name] = {"type": "categorical", "source": source, "vocab_size": count + 1}
        fields.features["item_id"]["padding_idx"] = 0
        fields.labels, fields.default_emb_dim = ["label"], WIDTH
        self.model = din.DIN(
            fields,
            dnn_hidden_units=list(DEEP),
            attention_hidden_units=list(ATTENTION),
            learning_rate=learning_rate,
            embedding_dim=WIDTH,
            optimizer="adam",
            loss="binary_crossentropy",
            metrics=["AUC"],
            model_root=tempfile.gettempdir(),
            verbose=0,
        )
        self.model._max_gradient_norm, self.model._total_steps, self.model._eval_steps = 10.0, 0, 1 << 60
        self.model._stop_training = False

    def epoch(self, seed: int) -> None:
        """As of ``Contestant``."""
        self.model.train_epoch(_Batches(self.columns, seed, _of_sequence))

    def scores(self, part: pa.Table) -> np.ndarray:
        """As of ``Contestant``."""
        columns = padded(part, self.columns["history"].shape[1])
        return np.asarray(self.model.predict(_Batches(columns, None, _of_sequence)))


class Ours:
    """Our recipe ``din`` with the perceptron of the others behind it, its tables updated in ``backward``.

    Args:
        given: what to train on.
        seed: of the initial weights.
        rates: learning rates of AdamW on the dense weights and of row-wise Adagrad on the tables.
        grouped: whether the impressions of a request share its history; else each is a request of its own.
    """

    def __init__(self, given: Impressions, seed: int, rates: tuple[float, float], grouped: bool) -> None:
        torch.manual_seed(seed)
        self.grouped, self.train = grouped, Requests(given.train, grouped)
        inputs, counts = learn_inputs(self.train, given.longest, (USER_ID,))
        recipe = Recipe("din", {"ids": Ids, "din": Din})
        config = CtrConfig(
            recipe=recipe,
            inputs=inputs,
            id_width=WIDTH,
            content_width=0,
            embedding_id=None,
            loss="pointwise",
            learning_rate=rates[0],
            table_learning_rate=rates[1],
        )
        self.model = config.build()
        deepen(self.model)
        self.encoder = FrameEncoder(inputs, None)
        self.learner = Learner(self.model, rates[0])
        self.at_once = max(1, int(BATCH / counts.mean()))

    def epoch(self, seed: int) -> None:
        """As of ``Contestant``."""
        self.model.train()
        for batch in self._batches(seed):
            self.learner.step(training_loss(self.model, batch, "pointwise"), "the benchmark")

    def load(self, seed: int) -> None:
        """Make the batches of an epoch, and nothing else."""
        for _ in self._batches(seed):
            pass

    def _batches(self, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(len(self.train))
        groups = (order[start : start + self.at_once] for start in range(0, len(order), self.at_once))
        yield from ALL.batches(self.train, self.encoder, groups)

    def scores(self, part: pa.Table) -> np.ndarray:
        """As of ``Contestant``."""
        return Ranker(self.model.eval(), self.encoder).score(Requests(part, self.grouped).frame)


class Requests:
    """Impressions as requests with candidates, in memory.

    Args:
        rows: as of ``Impressions``.
        grouped: whether the impressions of a request are one; else each is a request of its own.
    """

    signature = Signature(
        "generated", (Feature("category", "generated", "category", "candidate", "category", pa.int64()),)
    )
    windows: np.ndarray | None = None  # all are in memory

    def __init__(self, rows: pa.Table, grouped: bool) -> None:
        asked = rows["request_id"].to_numpy()
        first = np.flatnonzero(np.diff(asked, prepend=-1)) if grouped else np.arange(len(rows))
        history = rows["history"].combine_chunks().take(pa.array(first))
        offsets = history.offsets.to_numpy().astype(np.int64)
        behaved = history.flatten().to_numpy()
        age = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(behaved))
        requests = pa.table(
            {
                "request_id": asked[first],
                "user_id": rows["user_id"].take(pa.array(first)),
                "time": pa.array(np.full(len(first), NOW_US)).cast(TIME),
                "query_id": pa.nulls(len(first), pa.int64()),
            }
        )
        self.frame = Frame(
            requests=requests,
            candidates=rows.select(["item_id", "category", "label"]),
            offsets=np.append(first, len(rows)).astype(np.int64),
            history=History(offsets, behaved, np.ones(len(behaved), np.int64), NOW_US - age * MINUTE_US),
        )

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, start: int, stop: int) -> Frame:
        """Requests ``start`` to ``stop``."""
        return self.select(np.arange(start, stop))

    def select(self, request_rows: np.ndarray) -> Frame:
        """The requests at these rows."""
        return select_requests(self.frame, request_rows)


def deepen(model: ClickModel) -> None:
    """Give a click model the deep perceptron of the others."""
    first, *rest = DEEP
    model.candidate_input = nn.Linear(model.candidate_input.in_features, first)
    if model.request_input is not None:
        model.request_input = nn.Linear(model.request_input.in_features, first, bias=False)
    layers: list[nn.Module] = [nn.ReLU()]
    for wide, narrow in zip(DEEP, rest, strict=False):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    model.head = nn.Sequential(*layers, nn.Linear(rest[-1], 1))


def missing(peer: type[Rechub | Fuxi]) -> str:
    """Why a peer cannot be imported here; empty if it can."""
    try:
        for name in peer.needs:
            importlib.import_module(name)
    except ImportError as error:
        return str(error)
    return ""


def sizes(given: Impressions) -> dict[str, int]:
    """Distinct ids by field."""
    return {"user_id": given.users, "item_id": given.items, "category": given.categories}


def padded(part: pa.Table, longest: int) -> dict[str, Tensor]:
    """The columns as tensors of int64, histories padded on the left with 0, and float32 labels."""
    offsets = part["history"].combine_chunks().offsets.to_numpy()
    counts = np.diff(offsets)
    history = np.zeros((len(part), longest), np.int64)
    history[np.arange(longest) >= longest - counts[:, None]] = part["history"].combine_chunks().flatten()
    columns = {name: torch.from_numpy(part[name].to_numpy().copy()) for name in ("user_id", "item_id")}
    columns["category"] = torch.from_numpy(part["category"].to_numpy().copy())
    return columns | {
        "history": torch.from_numpy(history),
        "label": torch.from_numpy(part["label"].to_numpy().copy()),
    }


class _Batches:
    """Batches of columns in memory, shuffled by ``seed`` or in order, in the form a library wants."""

    def __init__(self, columns: dict[str, Tensor], seed: int | None, form: Any) -> None:
        rows = len(columns["label"])
        self.order = torch.arange(rows)
        if seed is not None:
            self.order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        self.columns, self.form = columns, form

    def __len__(self) -> int:
        return -(-len(self.order) // BATCH)

    def __iter__(self) -> Iterator[Any]:
        for rows in self.order.split(BATCH):
            yield self.form({name: column[rows] for name, column in self.columns.items()})


def _with_label(columns: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return columns, columns.pop("label")


def _of_sequence(columns: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    behaved, target = columns.pop("history"), columns.pop("item_id")
    items = {"item_id": torch.cat([behaved, target[:, None]], dim=1).flatten()}
    return columns, items, behaved > 0

"""Ranks: processes of one machine that train one model together, each on its share of every batch.

They are forked from the process that has read the training requests, so none reads them again or holds a copy. A
rank that ends early ends the others; the last checkpoint is as it was.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from dataset.jagged import offsets_of
from feature_repo.frame import StoredRequests
from ranker.inputs.batch import Batch
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.learner import TrainingError

CPU = torch.device("cpu")
# Batches that are encoded together, and most behaviours of them, which take memory
# (docs/log/ranker.md#batches-encoded-together).
AT_ONCE, BEHAVIOURS = 8, 1 << 19
GRACE_S = 5.0  # between asking a rank to end and ending it


@dataclass(frozen=True)
class Share:
    """What one rank computes of every batch.

    Attributes:
        rank: from 0.
        ranks: how many train together.
        device: where this one computes.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device = CPU

    def batches(
        self, stored: StoredRequests, encoder: FrameEncoder, groups: Iterable[np.ndarray]
    ) -> Iterator[Batch]:
        """This rank's requests of the batches of some groups of rows int64, in order.

        Every rank takes part in every step, because the others wait for its rows of the tables: with fewer requests
        than ranks, the rest repeat the first one and count nothing of it.
        """
        for some in together(groups, encoder.inputs.history):
            own = [rows[self.rank :: self.ranks] for rows in some]
            taken = [mine if len(mine) else rows[:1] for mine, rows in zip(own, some, strict=True)]
            bounds = offsets_of([len(rows) for rows in taken])
            encoded = encoder.encoded(stored.select(np.concatenate(taken)))
            for mine, (start, stop) in zip(own, pairwise(bounds), strict=True):
                batch = encoded.batch(start, stop)
                if not len(mine):
                    nobody = torch.zeros_like(batch.candidate_mask)
                    batch = replace(batch, candidate_mask=nobody, label=batch.label * 0)
                yield batch if self.device == CPU else batch.to(self.device)

    def weigh(self, mean: Tensor, count: int) -> Tensor:
        """A loss whose mean over the ranks is the mean over the whole batch.

        Args:
            mean: the loss of this rank's share, a mean over ``count`` things.
            count: how many.
        """
        return mean if self.ranks == 1 else mean * (count * self.ranks / max(self.total(count), 1))

    def total(self, value: float) -> float:
        """The sum of a number over the ranks."""
        if self.ranks == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return float(summed)


ALL = Share()  # of one process


def together(groups: Iterable[np.ndarray], history: int) -> Iterator[list[np.ndarray]]:
    """The groups of requests that are encoded together: up to AT_ONCE, and of long histories fewer."""
    some: list[np.ndarray] = []
    for rows in groups:
        if some and (len(some) == AT_ONCE or sum(map(len, (*some, rows))) * history > BEHAVIOURS):
            yield some
            some = []
        some.append(rows)
    if some:
        yield some


def in_ranks(ranks: int, work: Callable[[Share], None]) -> None:
    """Run ``work`` in so many processes, each with its share, and wait for all of them.

    Each has a GPU of its own if there are enough, and they talk by NCCL; else all compute on CPU, and talk by Gloo.

    Raises:
        TrainingError: one failed or was killed, saying which and why; the others have been ended.
    """
    fork = get_context("fork")
    processes: list[BaseProcess] = []
    said: list[Connection] = []
    with tempfile.TemporaryDirectory() as meeting:
        try:
            for rank in range(ranks):
                receiver, sender = fork.Pipe(duplex=False)
                process = fork.Process(target=_run, args=(rank, ranks, work, meeting, sender), daemon=True)
                process.start()
                sender.close()
                processes.append(process)
                said.append(receiver)
            while running := [process.sentinel for process in processes if process.exitcode is None]:
                connection.wait(running)
                if failed := [n for n, process in enumerate(processes) if process.exitcode]:
                    raise TrainingError(_why(failed, processes, said))
        finally:
            _end(processes)


def _run(rank: int, ranks: int, work: Callable[[Share], None], meeting: str, said: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # a forked process has lost the threads of OpenMP
    if rank:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (one progress line is enough)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", rank) if gpus >= ranks else CPU
        sys.stderr.write(f"  {ranks} ranks on {device.type}; this machine has {gpus} GPUs\n")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}/store", rank=rank, world_size=ranks)
        work(Share(rank, ranks, device))
        dist.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit(130)
    except TrainingError as error:
        said.send((0, str(error)))
        sys.exit(1)
    except Exception as error:  # most often: the connection to a rank that failed is lost
        said.send(
            (1, f"{type(error).__name__}: {error}\n{traceback.format_exc()[-8000:]}")
        )  # what a pipe holds
        sys.exit(1)


def _end_with_parent() -> None:
    """Without the process that started it, nobody would end a rank that waits for another."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _why(failed: list[int], processes: list[BaseProcess], said: list[Connection]) -> str:
    """What ended the training; the other ranks' errors only say that they lost the connection to it."""
    ranks = len(processes)
    for rank in failed:
        code = processes[rank].exitcode or 0
        if code < 0:
            why = f"rank {rank} of {ranks} was ended by {signal.Signals(-code).name}"
            short = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return (
                f"{why}{short}; the others were stopped. The same command goes on after the last checkpoint."
            )
    told = [said[rank].recv() for rank in failed if said[rank].poll()]
    return min(told, default=(1, f"rank {failed[0]} of {ranks} ended early"))[1]


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE_S)
        if process.exitcode is None:
            process.kill()
            process.join()

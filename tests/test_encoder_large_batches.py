"""More negatives than a batch: over time (queue), over ranks (gather), and more than memory (GradCache)."""

import os
from collections import deque
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn

from encoder.losses import grad_cache
from encoder.losses.circle import circle_loss
from encoder.losses.gather import gather_keys, gather_with_gradient, ranks
from encoder.losses.info_nce import (
    false_extra_negatives,
    false_negatives,
    info_nce,
    matryoshka_info_nce,
)
from encoder.losses.queue import EMPTY, VectorQueue, false_queue_negatives


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def cached_backward(encode, samples, loss_of, chunk):
    """Back-propagate a loss of all rows with the graph of one chunk at a time; returns the loss."""
    loss = loss_of(grad_cache.cached(encode, samples, chunk))
    loss.backward()
    return loss.detach()


# Queue: shapes S slots, D width


def pushed(size, batches, width=3):
    """A queue after pushes of these numbers of vectors, and the slow twin of its contents."""
    queue, twin, rng = VectorQueue(size, width), deque(maxlen=size), torch.Generator().manual_seed(0)
    for count in batches:
        vectors = torch.randn(count, width, generator=rng)
        items, spus = torch.randint(0, 50, (2, count), generator=rng)
        queue.push(vectors, items, spus)
        twin.extend(zip(vectors.tolist(), items.tolist(), spus.tolist(), strict=True))
    return queue, twin


@pytest.mark.parametrize(
    "batches", [[], [4], [4, 4], [3, 3, 3, 3, 3], [7, 7], [10], [25], [4, 25, 4], [1] * 23]
)
def test_the_queue_holds_the_newest_vectors(batches):
    queue, twin = pushed(10, batches)
    vectors, items, spus = (part.tolist() for part in queue.contents())
    used = [row for row in zip(vectors, items, spus, strict=True) if row[1] != EMPTY]
    assert sorted(used) == sorted(twin) and len(queue) == len(twin) == min(sum(batches), 10)


def test_the_queue_forgets_the_oldest_first():
    queue = VectorQueue(4, 1)
    for item in range(9):
        queue.push(torch.tensor([[float(item)]]), torch.tensor([item]), torch.tensor([item]))
        assert sorted(set(queue.contents()[1].tolist()) - {EMPTY}) == list(range(max(item - 3, 0), item + 1))


@pytest.mark.parametrize("batches", [[], [3], [4, 4, 4]])
def test_a_reloaded_queue_is_the_queue_bit_for_bit_and_goes_on_alike(tmp_path, batches):
    queue, _ = pushed(10, batches)
    save_file(queue.tensors(), tmp_path / "queue.safetensors")
    again = VectorQueue(10, 3)
    again.push(torch.ones(2, 3), torch.tensor([7, 8]), torch.tensor([7, 8]))
    again.load(load_file(tmp_path / "queue.safetensors"))
    for step in range(2):
        pairs = zip(queue.tensors().items(), again.tensors().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs), step
        for each in (queue, again):
            each.push(torch.full((3, 3), 0.1), torch.arange(3), torch.arange(3))


def test_saved_tensors_do_not_change_with_later_pushes():
    queue, _ = pushed(5, [5])
    saved = queue.tensors()
    before = saved["vector"].clone()
    queue.push(torch.ones(2, 3), torch.arange(2), torch.arange(2))
    assert torch.equal(saved["vector"], before)


def test_queued_copies_variants_and_empty_slots_are_no_negatives():
    queue = VectorQueue(5, 2)
    queue.push(torch.randn(4, 2), torch.tensor([10, 20, 30, 40]), torch.tensor([1, 2, 3, 4]))
    anchor, anchor_spu = torch.tensor([5, 6, 7]), torch.tensor([-1, -2, 4])
    item, spu = torch.tensor([10, 21, 99]), torch.tensor([1, 2, 9])
    assert false_queue_negatives(queue, anchor, item, spu, anchor_spu).tolist() == [
        [True, False, False, False, True],  # its positive itself
        [False, True, False, False, True],  # a variant of its positive
        [False, False, False, True, True],  # a variant of the anchor item
    ]


@pytest.mark.parametrize("loss", [info_nce, circle_loss])
def test_an_empty_queue_adds_nothing_and_a_filled_one_its_vectors(loss):
    torch.manual_seed(0)
    anchors, items = torch.randn(2, 4, 6, dtype=torch.float64)
    keys = torch.arange(4)
    own = -1 - keys
    free = torch.zeros(4, 4, dtype=torch.bool)
    queue = VectorQueue(6, 6)

    def value():
        masked = false_queue_negatives(queue, keys, keys, keys, own)
        return float(
            loss(anchors, items, free, negatives_ND=queue.contents()[0].double(), masked_negatives_BN=masked)
        )

    assert value() == pytest.approx(float(loss(anchors, items, free)), rel=1e-12)
    further = torch.randn(3, 6)
    queue.push(further, torch.tensor([100, 101, 2]), torch.tensor([100, 101, 2]))
    masked = torch.zeros(4, 3, dtype=torch.bool)
    masked[2, 2] = True
    wanted = loss(anchors, items, free, negatives_ND=further.double(), masked_negatives_BN=masked)
    assert value() == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("loss", [info_nce, circle_loss])
def test_pushing_between_loss_and_backward_leaves_the_gradient_alone(loss):
    gradients = []
    for push in (False, True):
        torch.manual_seed(0)
        anchors, items = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
        queue = VectorQueue(5, 6)
        queue.push(torch.randn(5, 6), torch.arange(5), torch.arange(5))
        value = loss(anchors, items, torch.zeros(4, 4, dtype=torch.bool), negatives_ND=queue.contents()[0])
        if push:
            queue.push(items, torch.arange(4), torch.arange(4))
            assert not queue.contents()[0].requires_grad
        value.backward()
        gradients.append(torch.cat([anchors.grad, items.grad]))
    assert torch.equal(*gradients)


# Ranks: two processes, each with half of the pairs, against one with all of them

PAIRS, RANKS, WIDTHS = 12, 2, (8, 4)


def world():
    """Inputs of anchors, items and hard negatives, and their keys, of the joined batch."""
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, PAIRS, 10, dtype=torch.float64, generator=rng)
    keys = torch.randint(0, 8, (3, PAIRS), generator=rng)  # anchors, items, SPUs: few, so that many clash
    hard = torch.randint(0, 8, (2, PAIRS), generator=rng)
    weights = torch.rand(PAIRS, dtype=torch.float64, generator=rng)
    return inputs, keys, hard, weights


def encoder():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8)).double()


def step_loss(name, rows, keys, hard, weights, queue):
    """A step's loss from the vectors (3 b, D) and keys of this rank; the same lines serve one rank or many."""
    anchors, items, negatives = (gather_with_gradient(part) for part in rows.chunk(3))
    anchor, item, spu = (gather_keys(key) for key in keys)
    hard_item, hard_spu = (gather_keys(key) for key in hard)
    weights = gather_keys(weights)
    all_keys = anchor, item, spu, -1 - torch.arange(len(item))
    masked = false_negatives(*all_keys)
    assert masked.any()
    extra = torch.cat([negatives, queue.contents()[0].double()])
    masked_extra = torch.cat(
        [false_extra_negatives(*all_keys, hard_item, hard_spu), false_queue_negatives(queue, *all_keys)], 1
    )
    queue.push(items, item, spu)
    if name == "circle":
        return circle_loss(anchors, items, masked, extra, masked_extra, weights, gamma=4.0)
    return matryoshka_info_nce(anchors, items, masked, WIDTHS, 0.2, extra, masked_extra, weights)


def two_steps(name, rank, world_size, way):
    """Losses and parameter gradients of two steps on this rank's share; the second has a filled queue."""
    inputs, keys, hard, weights = world()
    mine = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    model, queue = encoder(), VectorQueue(15, 8)
    found = {}
    for step in range(2):
        model.zero_grad()
        rows = (inputs[:, mine] + step).flatten(0, 1)

        def loss_of(vectors):
            return step_loss(name, vectors, keys[:, mine], hard[:, mine], weights[mine], queue)

        if way == "cached":
            loss = cached_backward(lambda part: model(torch.stack(list(part))), list(rows), loss_of, 5)
        else:
            loss = loss_of(model(rows))
            loss.backward()
        if world_size > 1:
            for value in (loss.detach(), *(p.grad for p in model.parameters())):
                dist.all_reduce(value)  # the mean over ranks, as data-parallel training takes it
                value /= world_size
        found[f"{name}.{way}.{step}.loss"] = loss.detach()
        found |= {f"{name}.{way}.{step}.{n}": p.grad.clone() for n, p in model.named_parameters()}
    return found | {f"{name}.{way}.queue.{key}": tensor for key, tensor in queue.tensors().items()}


def run_rank(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=RANKS, rank=rank
    )
    found = {"ranks": torch.tensor(ranks())}
    for name in ("info_nce", "circle"):
        for way in ("plain", "cached"):
            found |= two_steps(name, rank, RANKS, way)
    columns = torch.arange(6).reshape(3, 2).T  # not contiguous
    found["keys"] = gather_keys(columns + 10 * rank)
    vectors = torch.ones(2, 3, requires_grad=True)
    asked = (rank + 1.0) * torch.arange(4)[:, None].repeat(1, 3)
    gather_with_gradient(vectors).backward(asked)
    found |= {"asked": asked, "given": vectors.grad}
    save_file(found, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(RANKS)]


@pytest.mark.parametrize("way", ["plain", "cached"])
@pytest.mark.parametrize("name", ["info_nce", "circle"])
def test_ranks_that_gather_train_as_one_process_on_the_joined_batch(of_ranks, name, way):
    wanted = two_steps(name, 0, 1, "plain")
    for found in of_ranks:
        assert int(found["ranks"]) == RANKS
        for key, value in wanted.items():
            theirs = found[key.replace("plain", way)]
            assert torch.allclose(theirs, value, rtol=0, atol=1e-6), key
    assert all(float(value.abs().max()) > 1e-3 for key, value in wanted.items() if "weight" in key)


def test_keys_are_gathered_in_order_of_rank(of_ranks):
    first = torch.arange(6).reshape(3, 2).T
    for found in of_ranks:
        assert torch.equal(found["keys"], torch.cat([first, first + 10]))


def test_a_row_gets_the_sum_of_what_the_ranks_ask_of_it(of_ranks):
    for rank, found in enumerate(of_ranks):
        assert found["given"].tolist() == [[3.0 * row] * 3 for row in (2 * rank, 2 * rank + 1)]
        assert found["asked"].tolist() == [[(rank + 1.0) * row] * 3 for row in range(4)]  # left as it was


def test_alone_there_is_nothing_to_gather():
    vectors = torch.randn(3, 2, requires_grad=True)
    assert ranks() == 1 and gather_with_gradient(vectors) is vectors and gather_keys(vectors) is vectors


# GradCache

COUNT = 23


def contrast(rows):
    """A loss that couples all rows."""
    anchors, items = rows[:11], rows[11:22]
    return info_nce(anchors, items, torch.zeros(11, 11, dtype=torch.bool), 0.2) + rows[22].square().sum()


def grad_norms(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("chunk", [1, 3, 8, 23, 64])
def test_the_cached_gradient_is_the_gradient(chunk):
    samples = list(torch.randn(COUNT, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    plain, cached = encoder(), encoder()
    wanted = contrast(plain(torch.stack(samples)))
    wanted.backward()
    held = []

    def encode(part):
        if torch.is_grad_enabled():
            held.append(len(part))
        return cached(torch.stack(list(part)))

    found = cached_backward(encode, samples, contrast, chunk)
    assert not found.requires_grad and float(found) == pytest.approx(wanted.item(), abs=1e-6)
    assert torch.allclose(grad_norms(cached), grad_norms(plain), rtol=0, atol=1e-6)
    assert max(held) == min(chunk, COUNT) and sum(held) == COUNT


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_the_second_pass_repeats_the_dropout_of_the_first(chunk):
    samples = list(torch.randn(COUNT, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))

    def noisy(rows):
        return contrast(rows) * (1 + torch.rand(()))

    def stochastic():
        return nn.Sequential(encoder(), nn.Dropout(0.5), nn.Linear(8, 8, dtype=torch.float64))

    torch.manual_seed(9)
    plain = stochastic()
    torch.manual_seed(9)
    cached = stochastic()
    torch.manual_seed(11)
    rows = [plain(torch.stack(samples[start : start + chunk])) for start in range(0, COUNT, chunk)]
    wanted = noisy(torch.cat(rows))
    wanted.backward()
    after = torch.rand(3)
    torch.manual_seed(11)
    found = cached_backward(lambda part: cached(torch.stack(list(part))), samples, noisy, chunk)
    assert torch.equal(torch.rand(3), after)  # what is drawn next does not depend on the second pass
    assert float(found) == pytest.approx(wanted.item(), abs=1e-6)
    assert torch.allclose(grad_norms(cached), grad_norms(plain), rtol=0, atol=1e-6)


def test_gradients_add_up_and_the_loss_may_hold_parameters():
    samples = list(torch.randn(5, 10, dtype=torch.float64))
    model, scale = encoder(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def encode(part):
        return model(torch.stack(list(part)))

    for _ in range(2):
        cached_backward(encode, samples, lambda rows: scale * rows.square().mean(), 2)
    twice = grad_norms(model).clone()
    assert float(scale.grad) == pytest.approx(2 * encode(samples).square().mean().item())
    model.zero_grad()
    (2 * encode(samples).square().mean()).backward()
    assert torch.allclose(twice, 2 * grad_norms(model), rtol=0, atol=1e-9)


def test_further_columns_carry_what_the_loss_needs_of_each_sample():
    """Gates and a balance per call ride along; the balance becomes the mean of the chunks' balances."""
    torch.manual_seed(4)
    samples = list(torch.randn(6, 10, dtype=torch.float64))
    router = nn.Linear(10, 3, dtype=torch.float64)

    def encode(part):
        gate = router(torch.stack(list(part))).softmax(1)
        balance = 3 * gate.mean(0).square().sum()
        return torch.cat([gate, balance.expand(len(part), 1)], 1)

    def loss_of(rows):
        return rows[:, 0].mean() + 0.1 * rows[:, 3].mean()

    found = cached_backward(encode, samples, loss_of, 2)
    gradient = router.weight.grad.clone()
    router.zero_grad()
    parts = [encode(samples[start : start + 2]) for start in (0, 2, 4)]
    wanted = torch.cat(parts)[:, 0].mean() + 0.1 * torch.stack([part[0, 3] for part in parts]).mean()
    wanted.backward()
    assert float(found) == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.allclose(gradient, router.weight.grad, rtol=0, atol=1e-12)

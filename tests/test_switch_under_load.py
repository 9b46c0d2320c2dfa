"""Twenty switches in ten seconds under load: no request fails, and no answer is made of two generations.

Everything is real and tiny: a trained encoder, index, two-tower model and ranker twice, Feast, ``moon serve``.

Run: pytest tests/test_switch_under_load.py
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import free_port

from dataset.marketplace.simulate import simulate
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, write_dataset
from encoder.train import train_encoder
from feature_repo.create import create_store
from feature_repo.vectors import Vectors
from moon import releases as embeddings
from moon import stages
from run import generations
from run.artifacts import open_artifact
from run.folder import Run
from run.sizes import size

TINY = replace(size("nano"), hidden=32, layers=1, image_px=16, text_tokens=16)
SECONDS, SWITCHES, WORKERS, K = 10.0, 20, 4, 5


class TinyRun(Run):
    """A run whose models are smaller than the smallest size."""

    @property
    def size(self):
        return TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two generations, trained from two encoders; the first serves."""
    folder = tmp_path_factory.mktemp("load") / "run"
    one = TinyRun(folder, "marketplace", "nano", 0, "embedded")
    folder.mkdir()
    choices = {"data": one.data, "size_name": one.size_name, "seed": 0, "profile": one.profile}
    (folder / "run.json").write_text(json.dumps(choices))
    tables, config = simulate(events=3000, seed=0)
    dataset = Dataset.open(write_dataset(folder / "dataset", tables, config))
    split = Split.open(split_dataset(dataset, folder / "split", seed=0))
    create_store(folder / "store", dataset, split)
    for seed in (0, 1):
        train_encoder(dataset, split, TINY, folder / "encoder", seed=seed, budget=0.05)
        stages.embed(one)
        if seed == 0:
            stages.materialize(one)
        stages.retrieval(one)
        stages.ranker(one)
        embeddings.publish(folder)
    embeddings.activate(folder, 1)
    return folder


class Service:
    """``moon serve`` on a free port, until the end of the block."""

    def __init__(self, run):
        self.run, self.port = run, free_port()

    def __enter__(self):
        program = [sys.executable, "-m", "moon", "serve"]
        self.process = subprocess.Popen(
            [*program, "--run", str(self.run), "--port", str(self.port), "--drain", "0"],
            stdout=subprocess.DEVNULL,
            stderr=(self.run / "serve.log").open("w"),
        )
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, (self.run / "serve.log").read_text()
            assert time.monotonic() < deadline, "the service did not start"
            try:
                assert self.ask("/readyz")["status"] == "ready"
                return self
            except OSError:
                time.sleep(0.2)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)

    def ask(self, path, body=None):
        """The answer; raises for any other status than 200."""
        url, data = f"http://127.0.0.1:{self.port}{path}", None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())


def load(service, stop, questions, answers, failures):
    """Ask again and again; keep every answer with its question."""
    rng = np.random.default_rng(threading.get_ident() % 2**32)
    while not stop.is_set():
        path, body = questions[rng.integers(len(questions))]
        began = time.monotonic()
        try:
            answer = service.ask(path, body)
            answers.append((began, time.monotonic() - began, path, answer))
        except Exception as error:
            failures.append(f"{path}: {error!r}")


def made_of(run, number):
    """Role -> artifact id of a generation."""
    parts = generations.find(run, number).artifacts
    return {generations.PARTS[name].role: artifact_id for name, artifact_id in parts.items()}


def nearest(run, number, item):
    """The items most like this one in the vectors of a generation, by brute force."""
    folder = generations.folder_of(run, number)
    vectors = Vectors.open(generations.open_parts(folder)["embedding"])
    cosine = vectors.matrix @ vectors.matrix[vectors.rows([item])[0]]
    order = [one for one in vectors.ids[np.argsort(-cosine, kind="stable")].tolist() if one != item]
    return order[:K]


@pytest.mark.slow
def test_switching_under_load_fails_no_request_and_mixes_no_answer(run):
    first, second = (made_of(run, number) for number in (1, 2))
    shared = {role for role in first if first[role] == second[role]}
    of_words = {"two_tower", "two_tower_index", "word_vectors", "words"}  # and of no embedding
    assert shared == {"cooccurrence", "taken", *of_words} and first.keys() == second.keys()
    split = Split.open(open_artifact(run / "split", "split"))
    users = split.retrieval["user_id"].to_pylist()[:20]
    items = Vectors.open(generations.open_parts(generations.folder_of(run, 1))["embedding"]).ids[:8].tolist()
    questions = [
        *((f"/recommend?user_id={user}&k={K}", None) for user in users),
        *((f"/similar?item_id={item}&k={K}", None) for item in items),
        *(
            ("/search", {"text": text, "k": K, "user_id": users[0]})
            for text in ("red mug", "blue striped hat")
        ),
    ]
    answers, failures, stop = [], [], threading.Event()
    with Service(run) as service:
        workers = [
            threading.Thread(target=load, args=(service, stop, questions, answers, failures))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        began, took = time.monotonic(), []
        for switch in range(SWITCHES):
            number = 2 - switch % 2
            asked = time.monotonic()
            embeddings.activate(run, number)
            activated = time.monotonic()
            while service.ask("/readyz")["generation"]["served"] != number:
                assert time.monotonic() < activated + 30, service.ask("/readyz")["generation"]
                time.sleep(0.02)
            took.append((activated - asked, time.monotonic() - activated))
            time.sleep(max(0.0, began + (switch + 1) * SECONDS / SWITCHES - time.monotonic()))
        last = time.monotonic()
        time.sleep(0.5)
        stop.set()
        for worker in workers:
            worker.join()
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics").read().decode()
    assert not failures, (len(failures), failures[:3])
    assert last - began >= SECONDS and len(answers) > 100
    seen = Counter()
    for when, _, path, answer in answers:
        mine = [number for number, made in ((1, first), (2, second)) if answer["artifacts"] == made]
        assert len(mine) == 1, answer["artifacts"]
        assert answer["fallbacks"] == [] and answer["hits"], path
        seen[mine[0]] += 1
        if when > last + 0.1:
            assert mine[0] == number, "an answer of the old generation after the switch"
    similar = {(path, number): nearest(run, number, item)
               for item in items for number in (1, 2) for path in [f"/similar?item_id={item}&k={K}"]}  # fmt: skip
    for _, _, path, answer in answers:
        if path.startswith("/similar"):
            number = 1 if answer["artifacts"] == first else 2
            assert [hit["item_id"] for hit in answer["hits"]] == similar[path, number]
    assert min(seen[1], seen[2]) > 20, seen
    assert f"moon_switches_total {float(SWITCHES)}" in metrics
    served = sorted(opened for _, opened in took)
    print(  # noqa: T201  (the figures of the log)
        f"{len(answers)} answers in {last - began:.1f} s, {dict(seen)}, the slowest in "
        f"{max(waited for _, waited, _, _ in answers):.2f} s; activate "
        f"{np.median([one for one, _ in took]):.2f} s, then served after {served[len(served) // 2]:.2f} s "
        f"(longest {served[-1]:.2f} s)"
    )

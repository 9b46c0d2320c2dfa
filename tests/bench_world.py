"""Every benchmark there is, small, run once under watch: to whom it connects and which servers it starts."""

import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType

import pytest

import evaluation.bench
from evaluation.bench.lines import Line
from feature_repo.store import use_profile
from run.sizes import size

WATCH = Path(__file__).resolve().parent / "watch"
DIAL = replace(size("nano"), hidden=32, item_width=16, layers=1)
FEW = {"users": 20, "items": 50, "categories": 5, "longest": 10}
# What makes each benchmark small: arguments, and constants of its module. A folder or a run is given in ``measure``.
SMALL = {
    "bench_batches": {"clicks": 2000, "rounds": 3, "REQUESTS": 100},
    "bench_encoder": {"items": 8, "repeats": 1, "sides": (32,), "dial": DIAL},
    "bench_faults": {"clicks": 3000, "rounds": 1},
    "bench_front_door": {"items": 600, "repeats": 2},
    "bench_frame": {"clicks": 3000, "sizes": (100, 1000, 3000)},
    "bench_import": {"events": 200},
    "bench_ingest": {"seconds": 0.2, "backlog": 100, "CLICKS": 300},
    "bench_join": {"rows": 200, "events": 2000, "repeats": 1},
    "bench_last_day": {"events": 1_500},
    "bench_lengths": {
        "lengths": (5,),
        "long": (20,),
        "CLICKS": 3000,
        "ROUNDS": 2,
        "TURNS": 1,
        "SCORED": 20,
        "SEARCHING": ("sim_soft",),
    },
    "bench_load": {"workers": (1,), "SECONDS": 0.2, "ROUNDS": 1},
    "bench_materialize": {"rows": 400, "repeats": 1},
    "bench_other_joins": {"rows": 200, "events": 2000, "small": 100, "repeats": 1},
    "bench_peers": {"seeds": 1, "REQUESTS": 200, "SIZES": FEW},
    "bench_ranker": {},
    "bench_read": {"items": 600, "repeats": 2},
    "bench_serving": {"USERS": 2, "ROUNDS": 1, "NEW": 1},
    "bench_store": {},
    "bench_text_keys": {"rows": 400, "repeats": 1},
}


def benchmarks() -> dict[str, FunctionType]:
    """Every function ``bench_*`` of ``evaluation.bench``."""
    found = {}
    for module in pkgutil.walk_packages(evaluation.bench.__path__, "evaluation.bench."):
        functions = inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
        found |= {n: f for n, f in functions if n.startswith("bench_") and f.__module__ == module.name}
    return found


BENCHMARKS = benchmarks()


def starts_redis(name: str) -> bool:
    """Whether a benchmark cannot do without a Redis server."""
    return "RedisServer" in vars(sys.modules[BENCHMARKS[name].__module__])


@dataclass(frozen=True)
class Measured:
    """What a benchmark returned, the ports that it connected to, and those of the servers that it started."""

    lines: list[Line]
    connected: set[str]
    redis: set[str]
    services: set[str]

    @property
    def started(self) -> set[str]:
        """Ports of its own."""
        return self.redis | self.services


def watched(call, log: Path) -> Measured:
    """``list(call())``, with what this process and its children did meanwhile."""
    if "sitecustomize watched" not in sys.modules:  # an audit hook stays for good
        spec = importlib.util.spec_from_file_location("sitecustomize watched", WATCH / "sitecustomize.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    log.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOON_TEST_WATCH", str(log))
        patch.setenv("PYTHONPATH", str(WATCH), prepend=os.pathsep)
        lines = list(call())
    events = [json.loads(line) for line in log.read_text().splitlines()]
    connected = {address[1] for event, *address in events if event == "socket.connect"}
    programs = [words for event, *words in events if event == "subprocess.Popen"]
    redis = [words for words in programs if words[0].endswith("redis-server")]
    services = [words for words in programs if words[1:4] == ["-m", "moon", "serve"]]
    return Measured(lines, connected, _ports(redis), _ports(services))


def _ports(programs: list[list[str]]) -> set[str]:
    return {words[words.index("--port") + 1] for words in programs}


def measure(name: str, folder: Path, finished_run) -> Measured:
    """Run a small benchmark; ``finished_run`` is called where it measures a run."""
    benchmark = BENCHMARKS[name]
    parameters, module = inspect.signature(benchmark).parameters, sys.modules[benchmark.__module__]
    with pytest.MonkeyPatch.context() as patch:
        for constant in SMALL[name].keys() - parameters.keys():
            patch.setattr(module, constant, SMALL[name][constant])
        small = {key: value for key, value in SMALL[name].items() if key in parameters}
        if "folder" in parameters:
            small["folder"] = folder / "small"
            small["folder"].mkdir()
        if "run" in parameters:
            small["run"] = _on_redis(finished_run(), folder / "run")
        for part in BENCHMARKS.keys() & vars(module).keys() - {name}:
            patch.setattr(module, part, lambda *_: iter(()))  # it is watched by itself
        return watched(lambda: benchmark(**small), folder / "watch.jsonl")


def _on_redis(run: Path, copied: Path) -> Path:
    """A copy of a run that is served from somebody's Redis, which does not even exist: nobody may ask for it."""
    shutil.copytree(run, copied, symlinks=True)
    (copied / "run.json").write_text(
        json.dumps(json.loads((run / "run.json").read_text()) | {"profile": "redis"})
    )
    use_profile(copied / "store", "redis", "redis://127.0.0.1:1/0")
    return copied

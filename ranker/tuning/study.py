"""A study: trials of settings, which Optuna proposes and prunes, kept in a folder so that it can be resumed.

The folder holds ``terms.json`` (what is tuned, on what, within which space), ``journal.jsonl`` (Optuna's own record,
a line of JSON per event) and the results. What trial n tries depends on the seed, n and the trials before it only, so
a study that was interrupted proposes what it would have proposed, and resumes the trial that was cut short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonstore.disk import make_folder, writing
from moonstore.files import write_json
from ranker.learner import TrainingError
from ranker.tuning.space import Space, to_json
from run.artifacts import read_json

if TYPE_CHECKING:
    import optuna

JOURNAL, TERMS = "journal.jsonl", "terms.json"
RANDOM_TRIALS = 8  # before the sampler learns from what it has seen
# A trial is compared with the median of at least so many that ran as many epochs, from this epoch on: slow rates take
# long, and fast ones end early.
COMPARED_TRIALS, PRUNED_FROM = 4, 3
MEASURED = 4  # trials that importances are estimated from, at least
Report = Callable[[int, float], None]
Attempt = Callable[[Mapping[str, Any], int, Report], float]


class TuningError(RuntimeError):
    """A study cannot begin, go on, or find anything; the message says why."""


class Pruned(Exception):  # noqa: N818  (no error: the trial is over)
    """A trial is worse than others were after as many epochs."""


@dataclass(frozen=True)
class Tried:
    """One trial of a study.

    Attributes:
        number: from 0.
        state: ``complete``, ``pruned`` or ``failed``.
        values: setting -> what was tried.
        losses: validation loss after each epoch that was run.
        cpu_seconds: of the process that ended it.
        why: what failed; empty unless it did.
    """

    number: int
    state: str
    values: dict[str, Any]
    losses: tuple[float, ...]
    cpu_seconds: float
    why: str

    @property
    def loss(self) -> float:
        """Of its best epoch; infinite without one."""
        return min(self.losses, default=float("inf"))


class Study:
    """Trials in a folder, begun or gone on with.

    Args:
        out: the folder.
        space: what may be tried.
        terms: what is tuned on what, JSON values; a study of other terms or another space is not gone on with.
        first: what is tried first, values of the space; with what is shipped among them the best is never worse by
            the validation loss.
        seed: of what is proposed.

    Raises:
        TuningError: Optuna is not installed, or the folder holds a study of other terms or another space.
    """

    def __init__(
        self,
        out: Path,
        space: Space,
        terms: Mapping[str, Any],
        first: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        self.out, self.space, self.seed = out, space, seed
        _optuna()
        make_folder(out)
        self._same_terms({"space": to_json(space), "first": [dict(one) for one in first], **terms})
        self._study = self._open(first)

    def run(self, trials: int, attempt: Attempt) -> None:
        """Try until the study has so many trials in all.

        Args:
            trials: in all, those of earlier calls among them.
            attempt: of the values, the trial's number and a function to call with every epoch, from 1, and its
                validation loss, which raises ``Pruned``; the best loss.
        """
        with writing(self.out):
            while (trial := self._next(trials)) is not None:
                self._try(trial, attempt)

    @property
    def tried(self) -> list[Tried]:
        """The trials that have ended, in order."""
        return [
            Tried(
                number=one.number,
                state={"FAIL": "failed"}.get(one.state.name, one.state.name.lower()),
                values=dict(one.params),
                losses=tuple(one.intermediate_values[epoch] for epoch in sorted(one.intermediate_values)),
                cpu_seconds=one.user_attrs.get("cpu_seconds", 0.0),
                why=one.user_attrs.get("why", ""),
            )
            for one in self._study.get_trials(deepcopy=False)
            if one.state.is_finished()
        ]

    @property
    def best(self) -> Tried:
        """The complete trial of the least loss, the first of equal ones; raises as ``best_of``."""
        return self.best_of(len(self.tried))

    def best_of(self, trials: int) -> Tried:
        """The best of the first trials: what a study of so many had found.

        Raises:
            TuningError: none of them was completed.
        """
        tried = [one for one in self.tried if one.number < trials]
        complete = [one for one in tried if one.state == "complete"]
        if not complete:
            why = next((one.why for one in tried if one.why), "none was tried")
            raise TuningError(
                f"{self.out}: expected a trial that was completed, found none of {len(tried)}: {why}"
            )
        return min(complete, key=lambda one: one.loss)

    def importances(self) -> dict[str, float]:
        """Setting -> its share of what the trials' losses differ by (fANOVA); empty with too few trials.

        Trials that were pruned count as well: they are the bad ones.
        """
        optuna = _optuna()
        losses = {one.number: one.loss for one in self.tried if math.isfinite(one.loss)}
        if len(set(losses.values())) < MEASURED:
            return {}
        measured = optuna.create_study()
        for one in self._study.get_trials(deepcopy=False):
            if one.number in losses:
                parts = {"params": one.params, "distributions": one.distributions}
                measured.add_trial(optuna.create_trial(value=losses[one.number], **parts))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
        found = optuna.importance.get_param_importances(measured, evaluator=evaluator)
        return {name: round(float(share), 4) for name, share in found.items()}

    def _next(self, trials: int) -> optuna.Trial | None:
        optuna = _optuna()
        every = self._study.get_trials(deepcopy=False)
        cut = [one for one in every if one.state == optuna.trial.TrialState.RUNNING]
        number = cut[0].number if cut else sum(one.state.is_finished() for one in every)
        if not cut and number >= trials:
            return None
        # Anew for every trial: the journal does not keep where a sampler's random numbers have got to.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self.seed * 100_003 + number, n_startup_trials=RANDOM_TRIALS, multivariate=True
        )
        return optuna.trial.Trial(self._study, cut[0]._trial_id) if cut else self._study.ask()

    def _try(self, trial: optuna.Trial, attempt: Attempt) -> None:
        optuna = _optuna()
        values = {name: one.ask(trial, name) for name, one in self.space.items()}
        known = set(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        began = time.process_time()

        def report(epoch: int, loss: float) -> None:
            if epoch not in known:
                trial.report(loss, epoch)
            if trial.should_prune():
                raise Pruned

        value, state = None, optuna.trial.TrialState.COMPLETE
        try:
            value = attempt(values, trial.number, report)
        except Pruned:
            state = optuna.trial.TrialState.PRUNED
        except TrainingError as error:
            state = optuna.trial.TrialState.FAIL
            trial.set_user_attr("why", str(error))
        trial.set_user_attr("cpu_seconds", round(time.process_time() - began, 2))
        self._study.tell(trial, value, state)

    def _open(self, first: Sequence[Mapping[str, Any]]) -> optuna.Study:
        optuna = _optuna()
        journal = self.out / JOURNAL
        with writing(journal):
            _drop_half_a_line(journal)
            backend = optuna.storages.journal.JournalFileBackend(str(journal))
            study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="ranker",
                load_if_exists=True,
                direction="minimize",
                pruner=optuna.pruners.MedianPruner(
                    COMPARED_TRIALS, PRUNED_FROM, n_min_trials=COMPARED_TRIALS
                ),
            )
            for values in first:
                study.enqueue_trial(dict(values), skip_if_exists=True)
        return study

    def _same_terms(self, terms: Mapping[str, Any]) -> None:
        path = self.out / TERMS
        if not path.exists():
            write_json(path, dict(terms))
            return
        found = read_json(path, f"Remove {self.out} and run 'moon ranker --tune' again.")
        if others := _differences(found, terms):
            raise TuningError(
                f"{self.out}: holds a study of another search: {'; '.join(others)}. Its trials cannot be compared "
                f"with these: remove the folder, or move it away, and run 'moon ranker --tune' again."
            )


def _differences(found: Any, now: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, each with its path."""
    if isinstance(found, dict) and isinstance(now, dict):
        every = [*found, *(key for key in now if key not in found)]
        return [
            said for key in every
            for said in _differences(found.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]  # fmt: skip
    return [] if found == now else [f"{name} was {found}, is {now}"]


def _drop_half_a_line(journal: Path) -> None:
    """Remove the event that a kill cut in the middle: the next one would be written behind it."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TuningError("a study needs Optuna, which is not installed. Run 'make setup-tune'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

"""A stage makes the steps that were planned, or those that fit into its time, whatever they turn out to cost."""

import pytest

from encoder import pace as module
from encoder.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    """CPU time that passes only when a test lets it."""
    now = [100.0]
    monkeypatch.setattr(module.time, "process_time", lambda: now[0])
    return now


def test_as_many_steps_as_planned_whatever_they_cost(clock):
    made = []
    for step in Pace(7, first=3):
        clock[0] += 10
        made.append(step)
    assert made == [3, 4, 5, 6]


@pytest.mark.parametrize("guess", [1, 20, 5000])
def test_time_is_spent_whatever_the_guess_and_however_costs_change(clock, guess):
    pace, seen = Pace(guess, seconds=30.0), []
    for step in pace:
        clock[0] += 0.2 if step < 50 else 1.0  # 10 s of cheap steps, then dear ones
        seen.append(pace.steps)
    assert clock[0] == pytest.approx(130.0, abs=1.0) and len(seen) == pace.steps == 70
    assert seen[0] == guess and seen[1:50] == [150] * 49 and seen[-1] in (70, 71)


def test_there_is_a_step_even_without_time(clock):
    pace = Pace(10, seconds=-3.0)
    for _ in pace:
        clock[0] += 5
    assert pace.steps == 1


def test_from_a_later_step_the_time_is_what_is_left(clock):
    pace = Pace(40, seconds=5.0, first=30)
    made = []
    for step in pace:
        clock[0] += 0.5
        made.append(step)
    assert made == list(range(30, 40)) and pace.steps == 40

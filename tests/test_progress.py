"""Whoever waits is told every ten seconds what is being done, in one loop or in many short ones.

Run: pytest tests/test_progress.py
"""

from run import progress
from run.progress import track


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


def lines(monkeypatch, capsys, loops, items, seconds):
    """What is said of loops of so many items, each of which takes so long."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_unsaid_s", 0.0)
    for loop in range(loops):
        for _ in track(range(items), f"epoch {loop + 1}/{loops}", unit="batches"):
            clock.now += seconds
        clock.now += 60  # between the loops nothing is tracked
    return capsys.readouterr().err.splitlines()


def test_a_long_loop_is_told_of_every_ten_seconds_and_at_its_end(monkeypatch, capsys):
    said = lines(monkeypatch, capsys, 1, 25, 1.0)
    assert said == [
        "  epoch 1/1: 10/25 batches, 1.0/s, 15 s left",
        "  epoch 1/1: 20/25 batches, 1.0/s, 5 s left",
        "  epoch 1/1: 25/25 batches, 1.0/s, 0 s left",
    ]


def test_many_short_loops_are_told_of_as_often(monkeypatch, capsys):
    said = lines(monkeypatch, capsys, 30, 4, 0.5)
    assert [line.split(":")[0].strip() for line in said] == [
        f"epoch {loop}/30" for loop in (5, 10, 15, 20, 25, 30)
    ]


def test_short_work_is_not_worth_a_line(monkeypatch, capsys):
    assert lines(monkeypatch, capsys, 3, 3, 1.0) == []

"""An option that would have no effect is refused, with what it goes with, before anything is opened."""

import pytest
from typer.testing import CliRunner

from moon.cli import app


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dataset --append new --data hm:there", "--data: expected without --append"),
        ("dataset --append new --size nano", "--size: expected without --append"),
        ("dataset --append new --seed 0", "--seed: expected without --append"),  # the default, but typed
        ("dataset --append new --profile redis", "--profile: expected without --append"),
        ("frame --by time", "--by: expected with --shard"),
        ("ingest events.jsonl --consumer one", "--consumer: expected with a stream"),
        ("keys list --run there --keys keys.json", "--run: expected without --keys"),
        ("ranker --requests 5", "--requests: expected with --compare or --daily"),
        ("ranker --requests 5 --tune 2", "--requests: expected with --compare or --daily"),
        ("ranker --wait 2", "--wait: expected with --daily"),
        ("ranker --forget 2 --compare 2", "--forget: expected with --daily"),
        ("ranker --daily --tune 2", "--tune: expected without --daily"),
        ("ranker --compare 2 --without price", "--without: expected without --compare"),
        ("ranker --compare 2 --tune 2 --stream", "--stream: expected without --compare"),
        ("ranker --stream --rank-by cart", "--rank-by: expected without --stream"),
    ],
)
def test_an_option_without_effect_is_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, words.split())
    assert refused.exit_code == 2 and f"Invalid value for {said}" in refused.output


@pytest.mark.parametrize(
    "words",
    ["dataset --append new", "frame", "frame --shard 1/2 --by time", "ranker --compare 2 --tune 2 --requests 5",
     "ranker --daily --wait 1 --forget 2 --requests 5", "ingest redis://h:1/0/s --consumer one"],
)  # fmt: skip
def test_what_goes_together_is_not(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run yet" in str(CliRunner().invoke(app, words.split()).exception)

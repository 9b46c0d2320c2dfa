"""The service's settings: what is not said, and what is refused before anything is opened."""

from pathlib import Path

import pytest

from serving.settings import Settings


def test_what_is_not_said_is_the_default():
    told = Settings(run=Path("run"))
    assert (told.run, told.profile, told.clock) == (Path("run"), "embedded", "log")
    assert (told.host, told.port, told.per_source) == ("127.0.0.1", 8000, 500)
    assert (told.max_body_bytes, told.max_image_bytes) == (8 * 1024 * 1024, 5 * 1024 * 1024)
    assert (told.max_image_pixels, told.body_deadline_s) == (4_000_000, 10)


@pytest.mark.parametrize("profile", ["embedded", "redis"])
@pytest.mark.parametrize("clock", ["log", "wall"])
def test_every_store_and_clock_there_is_can_be_asked_for(profile, clock):
    assert Settings(run=Path("run"), profile=profile, clock=clock).profile == profile


@pytest.mark.parametrize(
    "name", ["port", "per_source", "max_body_bytes", "max_image_bytes", "max_image_pixels"]
)
def test_a_number_below_one_is_refused(name):
    assert getattr(Settings(run=Path("run"), **{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"^{name} is 0: expected at least 1$"):
        Settings(run=Path("run"), **{name: 0})


def test_a_store_or_a_clock_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="^profile is 'cloud': expected one of embedded, redis$"):
        Settings(run=Path("run"), profile="cloud")
    with pytest.raises(ValueError, match="^clock is 'sun': expected one of log, wall$"):
        Settings(run=Path("run"), clock="sun")

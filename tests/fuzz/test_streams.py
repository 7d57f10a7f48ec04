"""Migration streams with mistakes, beside naive targets."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import times
from tests.fuzz import streams
from tests.hosts import ONE_QUEUE

TARGET = ONE_QUEUE + "guest = true\n"


@times(0.15)
@given(st.randoms(use_true_random=True))
def test_stories(random: Random) -> None:
    streams.some_story(random)


def test_answers_are_of_all_sorts() -> None:
    answers = set()
    for seed in range(6):
        random = Random(seed)  # noqa: S311 -- no secrets
        story = streams.Story(streams.machine(random))
        for _ in range(streams.STEPS):
            streams.go_on(story, random)
        answers.update(story.answers)
    assert {"", "EIO", "EFAULT", "ENODEV", "EINVAL"} <= answers


@pytest.mark.parametrize("driver", streams.NAIVE)
def test_cuts_at_every_byte(driver: str) -> None:
    """A stream that ends there, its rest in a second write, and a byte too many in a third one."""
    story = streams.Story(f'driver = "{driver}"\n{TARGET}')
    data = story.fitting().packed()
    for place in range(1, len(data)):
        story.do("guest", "0")
        story.do("guest", "1")
        story.do("go", "RESUMING")
        for piece in (data[:place], data[place:], b"\0"):
            story.do("write", -1, piece.hex())
    story.end()
    assert "" in story.answers
    assert "EIO" in story.answers

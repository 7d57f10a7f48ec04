"""Texts of scenarios: a host, or a message with the line of the mistake."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.scenario.values import Kind
from tests.examples import times
from tests.fuzz import scenarios, toml


@times(2)
@given(st.randoms(use_true_random=True))
def test_texts(random: Random) -> None:
    scenarios.some_text(random)


def test_texts_are_of_all_sorts() -> None:
    texts = [toml.text(Random(seed)) for seed in range(150)]  # noqa: S311 -- no secrets
    became = Counter(map(scenarios.check, texts))
    assert set(became) == {"refused", "impossible", "booted"}
    assert sum(bool(one.line) for one in texts) > 10


@pytest.mark.parametrize("name", toml.TABLES)
def test_values_are_known_for_every_key(name: str) -> None:
    for key in (*toml.TABLES[name], *(key for one in toml.TABLES[name] for key in toml.inside(one))):
        assert toml.wrong(key), key.name
        if isinstance(key.kind, Kind):
            assert len(toml.accepted(key)) > 1, key.name

"""Everything that can be written, on hosts without a mount."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import times
from tests.fuzz import stores

if TYPE_CHECKING:
    from random import Random

CORPUS = sorted((Path(__file__).parent / "corpus/stores").glob("*.json"))


@times(0.2)
@given(st.randoms(use_true_random=True))
def test_stories(random: Random) -> None:
    stores.some_story(random)


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_what_was_found(file: Path) -> None:
    stores.replay(file)

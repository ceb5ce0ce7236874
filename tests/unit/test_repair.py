"""Which parts of a model get a gentler precision: by harm for their price, and as few as keep the margins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.artifact import Task
from edgeexport.policy import Override
from edgeexport.recipe import CompressSection, Recipe, VocabularySection
from edgeexport.repair import Repairer, promotions, suffers, tightened
from edgeexport.verify.check import Verdict
from edgeexport.verify.lane_report import Group


def group(match: str, distance: float, weights: int = 0, scheme: Any = "static") -> Group:
    return Group(match=match, scheme=scheme, distance=distance, weights=weights)


def test_parts_without_weights_come_first_and_become_float() -> None:
    ladder = promotions([group("op:SOFTMAX", 1.0), group("layer.0", 0.9, 500), group("layer.1", 0.1, 500)])
    assert ladder == [Override(match="op:SOFTMAX", scheme="float"), Override(match="layer.0", scheme="dynamic"),
                      Override(match="layer.1", scheme="dynamic"), Override(match="layer.0", scheme="float"),
                      Override(match="layer.1", scheme="float")]


def test_harm_counts_for_its_price() -> None:
    """A large layer must harm more than a small one to go first."""
    ladder = promotions([group("large", 0.3, 900), group("small", 0.1, 100)])
    assert [override.match for override in ladder[:2]] == ["small", "large"]


def test_what_is_dynamic_already_can_only_become_float() -> None:
    ladder = promotions([group("a", 0.1, 10, "dynamic"), group("b", 0.2, 10, "weight-only")])
    assert ladder == [Override(match="b", scheme="float"), Override(match="a", scheme="float")]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.integers(1, 1000)), max_size=30))
def test_every_static_part_comes_once_before_any_becomes_float_for_its_bytes(parts: list[tuple[bool, float, int]]) -> None:
    groups = [group(f"op:{number}" if bare else f"layer.{number}", distance, 0 if bare else weights)
              for number, (bare, distance, weights) in enumerate(parts)]
    ladder = promotions(groups)
    assert sorted(override.match for override in ladder[:len(groups)]) == sorted(each.match for each in groups)
    assert all(override.scheme == "float" for override in ladder[len(groups):])
    assert len(ladder) == len(groups) + sum(not each.match.startswith("op:") for each in groups)


class Trials(Repairer):
    """A repairer whose lane passes from so many promotions on; None for never."""

    def __init__(self, enough: int | None, parts: int) -> None:
        object.__setattr__(self, "enough", enough)
        object.__setattr__(self, "tried", [])
        object.__setattr__(self, "parts", parts)

    def causes(self, plan: Any) -> tuple[Group, ...]:
        return tuple(group(f"op:{number}", 1.0 - number / 100) for number in range(self.parts))

    def _recipe(self, plan: Any, promoted: Any) -> Any:
        return tuple(promoted)

    def _passes(self, plan: Any, recipe: Any) -> bool:
        self.tried.append(len(recipe))
        return self.enough is not None and len(recipe) >= self.enough


class Lane:
    class lane:  # noqa: N801 (stands for an attribute)
        name = "litert"


@given(st.integers(1, 60), st.data())
def test_the_search_finds_the_fewest_and_tries_few(parts: int, data: st.DataObject) -> None:
    enough = data.draw(st.integers(1, parts))
    repairer = Trials(enough, parts)
    repair, recipe = repairer.repair(Lane())  # type: ignore[arg-type]
    assert len(repair.promoted) == len(recipe) == enough
    assert [override.match for override in repair.promoted] == [f"op:{number}" for number in range(enough)]
    assert len(repairer.tried) <= 2 + parts.bit_length()
    assert repair.trials[enough]
    assert all(passed == (count >= enough) for count, passed in repair.trials.items())


class Build:
    class resolved:  # noqa: N801
        recipe = "as it was"


@pytest.mark.parametrize(("enough", "trials"), [(None, {0: False, 5: False}), (0, {0: True})])
def test_where_nothing_helps_or_nothing_harms_the_recipe_stays(enough: int | None, trials: dict[int, bool]) -> None:
    repairer = Trials(enough, 5)
    object.__setattr__(repairer, "prepared", Build())
    repair, recipe = repairer.repair(Lane())  # type: ignore[arg-type]
    assert repair.promoted == ()
    assert repair.trials == trials
    assert recipe == "as it was"


def test_what_was_taken_out_is_nothing_to_repair() -> None:
    """A smaller model's task metric is compared with the original's: what it lost there, no precision brings back."""
    def failed(group: str) -> Any:
        return SimpleNamespace(checks=[SimpleNamespace(verdict=Verdict.FAIL, group=group)])

    recipe = Recipe.model_validate({"schema": 1, "name": "x", "model": {"source": "m"}})
    smaller = recipe.model_copy(update={"compress": CompressSection(vocabulary=VocabularySection(size=9))})
    assert suffers(failed("parity"), recipe) and suffers(failed("task metric"), recipe)
    assert suffers(failed("parity"), smaller) and not suffers(failed("task metric"), smaller)
    assert not suffers(failed("budget"), recipe)


def test_texts_that_choose_may_use_half_of_the_allowed_error() -> None:
    assert tightened(Task.SENTENCE_SIMILARITY, {}) == {"cosine_p5": pytest.approx(0.985)}
    assert tightened(Task.TEXT_CLASSIFICATION, {"agreement": 0.9}) == {"agreement": pytest.approx(0.95), "logit_error_p95": pytest.approx(0.25)}


def test_nothing_to_promote_is_no_error() -> None:
    repairer = Trials(1, 0)
    object.__setattr__(repairer, "prepared", Build())
    repair, _ = repairer.repair(Lane())  # type: ignore[arg-type]
    assert repair.promoted == ()

"""Tables in two factors: as near to the whole table as can be, nearest for frequent tokens, in a model that goes on like any other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from architectures import SOME, TOLERANCE, spread, texts_for
from compressed import answers_of, assert_exports_equally, data_for, measured, model_of, weights_of
from edgeexport.converters.factorize_embeddings import POWER, factors
from reference import Original
from test_distill import taught
from tiny import Case
from zoo import Zoo, as_rows

from edgeexport.architectures import ENCODERS
from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.step import Refusal

# A model that fills in tokens answers with its table.
CASES = [case if case.task is not Task.FILL_MASK else Case(case.architecture, Task.TEXT_CLASSIFICATION) for case in SOME]
EXPORTED = [case for case in CASES if case.architecture in {"bert", "mobilebert"}]
RANK = 8
TAGGER = Case("bert", Task.TOKEN_CLASSIFICATION)


class Factorized:
    """A case with a table of rank 8, and the whole model with the product of the two factors for a table."""

    def __init__(self, zoo: Zoo, case: Case) -> None:
        self.case = case
        self.view = zoo.run(find_step("factorize_embeddings")(rank=RANK), {"checkpoint": zoo.loaded(case), "training": data_for(zoo, case)})
        self.original = Original(zoo.directory(case), case.task)
        stored = {name.partition("word_embeddings.")[2]: value for name, value in weights_of(self.view).items() if "word_embeddings" in name}
        assert set(stored) == {"0.weight", "1.weight", "1.bias"}
        self.before = self.original.model.get_input_embeddings().weight.detach().clone()
        self.table = stored["0.weight"] @ stored["1.weight"].T + stored["1.bias"]
        self.original.model.get_input_embeddings().weight.data = self.table
        self.expected = [self.original.outputs(*text) for text in texts_for(self.original)]


@pytest.fixture(scope="module")
def factorized(zoo: Zoo) -> Any:
    """Makes each case once."""
    made: dict[Case, Factorized] = {}
    return lambda case: made.setdefault(case, made.get(case) or Factorized(zoo, case))


def test_every_architecture_is_tested() -> None:
    assert {case.architecture for case in CASES} == set(ENCODERS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_model_with_another_table(factorized: Any, zoo: Zoo, case: Case) -> None:
    one = factorized(case)
    model, unit = model_of(one.view), spread(one.expected)
    for text, wanted in zip(texts_for(one.original), one.expected, strict=True):
        found = answers_of(model, one.original, *text)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= TOLERANCE * unit
    rows, width = one.before.shape
    whole = zoo.loaded(case).spec
    # Poolers that nothing answers through are not counted before a model is loaded.
    assert one.view.spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(value.numel() for name, value in weights_of(one.view).items() if "word_embeddings" in name) == RANK * (rows + width) + width
    assert one.view.spec.facts["embedding_rank"] == RANK < whole.facts["embedding_width"] == width
    assert (one.view.path / "model.safetensors").stat().st_size < (zoo.loaded(case).path / "model.safetensors").stat().st_size
    # Most of what a table of rank 8 can hold is held: no other of that rank would be nearer by far.
    left = (one.table - one.before).square().sum() / (one.before - one.before.mean(dim=0)).square().sum()
    best = (torch.linalg.svdvals(one.before - one.before.mean(dim=0))[RANK:] ** 2).sum() / (one.before - one.before.mean(dim=0)).square().sum()
    assert best <= left + 1e-5 and left < 1.3 * best + 0.02


@pytest.mark.parametrize("case", EXPORTED, ids=str)
@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
def test_it_exports_like_any_other(factorized: Any, zoo: Zoo, case: Case, model_format: str) -> None:
    one = factorized(case)
    assert_exports_equally(zoo, one.view, texts_for(one.original), one.expected, model_format)


def test_it_can_be_pruned_and_trained(factorized: Any, zoo: Zoo) -> None:
    one = factorized(TAGGER)
    narrow = zoo.run(find_step("prune_channels")(neurons=0.5), {"checkpoint": one.view, "importance": measured(zoo, one.view)})
    config = json.loads((narrow.path / "config.json").read_text())
    assert config["embedding_rank"] == RANK
    assert not any("word_embeddings" in name for name in config["pruned_shapes"])
    trained = zoo.run(find_step("distill")(epochs=1, hidden=1.0), taught(zoo, zoo.loaded(TAGGER), narrow, data_for(zoo, TAGGER)))
    before, after = weights_of(narrow), weights_of(trained)
    assert torch.equal(before["bert.embeddings.word_embeddings.0.weight"], after["bert.embeddings.word_embeddings.0.weight"])
    for part in ("weight", "bias"):  # the matrix learns, the table stays
        assert not torch.equal(before[f"bert.embeddings.word_embeddings.1.{part}"], after[f"bert.embeddings.word_embeddings.1.{part}"])


def test_frequent_tokens_are_nearer(zoo: Zoo) -> None:
    loaded = zoo.loaded(TAGGER)
    texts = ["the cat sat on the mat"] * 400
    view = zoo.run(find_step("factorize_embeddings")(rank=RANK), {"checkpoint": loaded, "training": zoo.dataset("cats", as_rows(texts))})
    before, after = (model_of(each).get_input_embeddings() for each in (loaded, view))
    ids = torch.arange(before.weight.shape[0])
    error = (before(ids) - after(ids)).norm(dim=-1).detach()
    original = Original(zoo.directory(TAGGER), TAGGER.task)
    frequent = original.tokenizer(texts[0])["input_ids"]
    assert error[frequent].mean() < 0.1 * error.mean()


# -- the arithmetic

def test_no_product_of_that_rank_is_nearer() -> None:
    random = np.random.default_rng(0)
    table, weights = random.normal(size=(60, 12)).astype(np.float32), random.random(60) ** 4
    for rank in (1, 5, 11):
        rows, matrix, mean = factors(table, weights, rank, 0)
        assert rows.shape == (60, rank) and matrix.shape == (rank, 12) and mean.shape == (12,)
        error = (weights[:, None] * (rows @ matrix + mean - table) ** 2).sum()
        centred = np.sqrt(weights)[:, None] * (table - np.average(table, axis=0, weights=weights))
        assert error == pytest.approx((np.linalg.svd(centred, compute_uv=False)[rank:] ** 2).sum())
        assert matrix @ matrix.T == pytest.approx(np.eye(rank), abs=1e-9)
    rows, matrix, mean = factors(table, weights, 12, 0)
    assert rows @ matrix + mean == pytest.approx(table, abs=1e-6)


def test_no_number_of_a_token_is_much_larger_than_the_others() -> None:
    random = np.random.default_rng(0)
    table = (random.normal(size=(500, 32)) * np.geomspace(100, 0.1, 32)).astype(np.float32)
    rows, _, _ = factors(table, np.ones(500), 16, 0)
    sizes = np.sqrt((rows**2).mean(axis=0))
    assert sizes.max() < 8 * sizes.min()


def test_the_same_seed_gives_the_same_factors() -> None:
    table = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    first, again, other = (factors(table, np.ones(60), 4, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert 0 < POWER < 1


# -- what is refused

def test_a_rank_that_saves_nothing_is_refused(zoo: Zoo) -> None:
    """The matrix takes numbers too, so that not every rank below the width saves any."""
    spec = zoo.loaded(TAGGER).spec
    tokens, width = spec.facts["vocabulary"], spec.facts["embedding_width"]
    largest = next(rank for rank in range(width, 0, -1) if rank * (tokens + width) < tokens * width)
    assert largest < width
    for rank, refused in ((largest, False), (largest + 1, True), (width, True), (9 * width, True)):
        found = find_step("factorize_embeddings")(rank=rank).infer({"checkpoint": spec})
        assert isinstance(found, Refusal) == refused
        if isinstance(found, Refusal):
            assert f"a table of {tokens} tokens with {width} numbers each" in found.reason
            assert found.hint == f"choose a compress.embeddings.rank below {largest + 1}"


def test_an_unknown_architecture_is_refused(zoo: Zoo) -> None:
    spec = zoo.loaded(TAGGER).spec.model_copy(update={"architecture": "strange"})
    assert isinstance(find_step("factorize_embeddings")(rank=8).infer({"checkpoint": spec}), Refusal)

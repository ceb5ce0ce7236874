"""A recipe's `[compress]` as steps: their order, what each is told, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from test_plan import HOST, resolved, target

from edgeexport.artifact import Task
from edgeexport.errors import PlanError
from edgeexport.plan import Plan, make_plan
from edgeexport.resolve import Resolved

DATA = ("probes", "evaluation", "development", "training")


def compressed(data: tuple[str, ...] = DATA, task: Task = Task.SENTENCE_SIMILARITY, **sections: Any) -> Resolved:
    found = resolved(recipe={"compress": sections}, data=data, task=task)
    facts = {name: {"name": name, "rows": 1, "labelled": name != "probes"} for name in data}
    leaves = {name: leaf.model_copy(update={"artifact": leaf.artifact.model_copy(update={
        "spec": leaf.artifact.spec.model_copy(update={"facts": facts[name]})})}) for name, leaf in found.leaves.items()}
    spec = found.spec.model_copy(update={"facts": found.spec.facts | {"vocabulary": 1000, "embedding_width": 32, "layers": 6, "labels": ["a", "b"]}})
    return Resolved(found.recipe, found.source, spec, found.text, found.datasets, leaves, found.judging)


def planned(*args: Any, **sections: Any) -> Plan:
    return make_plan(compressed(*args, **sections), [target()], HOST)


def steps(plan: Plan) -> list[str]:
    return [node.step.name for node in plan.nodes.values()]


def test_without_the_section_nothing_is_added() -> None:
    plan = planned()
    assert not {"trim_vocabulary", "drop_layers", "prune_channels", "distill"} & set(steps(plan))
    assert plan.reference == plan.original
    assert plan.checkpoint == "load_checkpoint"


def test_the_order_is_vocabulary_table_layers_channels_training() -> None:
    plan = planned(vocabulary={"size": 500}, embeddings={"rank": 8}, prune={"layers": 3, "heads": 0.5, "neurons": 0.5}, distill={"epochs": 1})
    nodes = plan.nodes
    assert nodes["trim_vocabulary"].inputs == {"checkpoint": "load_checkpoint", "training": "@training", "development": "@development"}
    assert nodes["factorize_embeddings[8]"].inputs == {"checkpoint": "trim_vocabulary", "training": "@training"}
    assert nodes["drop_layers[3]"].inputs == {"checkpoint": "factorize_embeddings[8]", "order": "measure_layers"}
    assert nodes["prune_channels[0.5, 0.5]"].inputs["checkpoint"] == "drop_layers[3]"
    # What is left is fitted to the model with all of its parts that reads the same tokens.
    assert nodes["reconstruct_layers"].inputs == {"checkpoint": "prune_channels[0.5, 0.5]", "original": "trim_vocabulary", "training": "@training"}
    assert nodes["distill"].inputs == {"student": "reconstruct_layers", "teacher": "compute_teacher", "training": "@training",
                                       "development": "@development", "development_teacher": "compute_teacher[development]"}
    assert nodes["compute_teacher"].inputs == {"checkpoint": "load_checkpoint", "texts": "@training"}  # the original teaches
    assert nodes["export_onnx"].inputs == {"checkpoint": "distill"}
    assert plan.checkpoint == "distill"


def test_all_tables_of_tokens_share_what_was_measured() -> None:
    prune = {"layers": 3, "heads": 0.5, "neurons": 0.5}
    tables: tuple[dict[str, Any], ...] = ({}, {"vocabulary": {"size": 500}}, {"embeddings": {"rank": 8}})
    plans = [planned(prune=prune, **table) for table in tables]
    for name in ("measure_layers", "measure_channels"):
        assert len({plan.nodes[name].key for plan in plans}) == 1
    assert [node for node in plans[0].nodes if node.startswith("drop_layers")] == ["drop_layers[3]"]


@pytest.mark.parametrize(("sections", "fitted"), [
    ({"embeddings": {"rank": 8}}, True),
    ({"prune": {"neurons": 0.5}}, True),
    ({"vocabulary": {"size": 500}}, False),  # of the layers nothing was lost
    ({"distill": {"epochs": 1}}, False),
    ({"prune": {"neurons": 0.5}, "reconstruct": False}, False),
])
def test_layers_are_fitted_where_something_was_lost(sections: dict[str, Any], fitted: bool) -> None:
    assert ("reconstruct_layers" in steps(planned(**sections))) is fitted


def test_without_texts_nothing_is_fitted() -> None:
    plan = planned(("probes", "evaluation"), prune={"neurons": 0.5, "importance": "magnitude"})
    assert plan.checkpoint == "prune_channels[1, 0.5]"


def test_lanes_are_compared_with_what_is_exported_and_judged_by_the_original() -> None:
    plan = planned(prune={"layers": 3})
    assert plan.nodes[plan.reference].inputs["checkpoint"] == "reconstruct_layers"
    assert plan.nodes["reconstruct_layers"].inputs["checkpoint"] == "drop_layers[3]"
    assert plan.nodes[plan.original].inputs == {"checkpoint": "load_checkpoint", "evaluation": "@evaluation"}
    assert {plan.reference, plan.original} <= set(plan.wanted)


def test_without_labels_the_original_itself_judges() -> None:
    plan = planned(("probes", "training"), prune={"layers": 3})
    assert plan.reference == plan.original
    assert plan.nodes[plan.reference].inputs["checkpoint"] == "load_checkpoint"


@pytest.mark.parametrize(("task", "weights"), [
    (Task.SENTENCE_SIMILARITY, (1.0, 0.1, 0.2, 0.0)), (Task.TEXT_CLASSIFICATION, (1.0, 0.0, 1.0, 0.5)),
    (Task.TOKEN_CLASSIFICATION, (4.0, 0.0, 1.0, 0.5)), (Task.QUESTION_ANSWERING, (1.0, 0.0, 1.0, 0.0))])
def test_what_is_learned_depends_on_the_task(task: Task, weights: tuple[float, ...]) -> None:
    names = ("answers", "similarities", "hidden", "labels")
    step = planned(DATA, task, distill={}).nodes["distill"].step.model_dump()
    assert tuple(step[name] for name in names) == weights
    chosen = (2.0, 0.3 if task is Task.SENTENCE_SIMILARITY else 0.0, 0.0, 0.0)
    given = planned(DATA, task, distill=dict(zip(names, chosen, strict=True))).nodes["distill"].step.model_dump()
    assert tuple(given[name] for name in names) == chosen


def test_importance_by_weights_needs_no_data() -> None:
    plan = planned(("probes",), prune={"neurons": 0.5, "importance": "magnitude"})
    assert plan.nodes["measure_channels"].inputs == {"checkpoint": "load_checkpoint"}


@pytest.mark.parametrize(("sections", "message"), [
    ({"vocabulary": {"size": 500}}, "compress.vocabulary needs training data"),
    ({"embeddings": {"rank": 8}}, "compress.embeddings needs training data"),
    ({"prune": {"layers": 3}}, "compress.prune.layers needs training data"),
    ({"prune": {"neurons": 0.5}}, "compress.prune.importance needs training data"),
    ({"distill": {}}, "compress.distill needs training data"),
])
def test_a_method_without_its_data_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        planned(("probes", "evaluation"), **sections)
    assert "[[data.training]]" in str(caught.value.hint)


@pytest.mark.parametrize(("sections", "reason"), [
    ({"vocabulary": {"size": 1000}}, "the model has 1,000 tokens only"),
    ({"embeddings": {"rank": 32}}, "two factors of rank 32 are no smaller than a table of 1,000 tokens with 32 numbers each"),
    ({"prune": {"layers": 6}}, "the model has 6 layers"),
])
def test_what_would_take_nothing_out_is_refused(sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned(**sections)
    assert reason in str(caught.value.why)


def test_the_vocabulary_that_answers_stays_whole() -> None:
    with pytest.raises(PlanError, match="what it answers with"):
        planned(DATA, Task.FILL_MASK, vocabulary={"size": 500})
    with pytest.raises(PlanError, match="what it answers with"):
        planned(DATA, Task.FILL_MASK, embeddings={"rank": 8})


def test_labels_that_are_not_there_cannot_be_learned() -> None:
    found = compressed(("probes", "training"), Task.TEXT_CLASSIFICATION, distill={"labels": 1.0})
    training = found.leaves["training"]
    bare = training.artifact.spec.model_copy(update={"facts": {"labelled": False}})
    found.leaves["training"] = training.model_copy(update={"artifact": training.artifact.model_copy(update={"spec": bare})})
    with pytest.raises(PlanError) as caught:
        make_plan(found, [target()], HOST)
    assert caught.value.why == "the training data have no labels"

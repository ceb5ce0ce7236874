"""A plan is a graph without a step too many; a key changes with what a result depends on, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from fake_steps import Shout, Write, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeexport import step as step_module
from edgeexport.artifact import Artifact, Blob, Kind, Spec, Task
from edgeexport.catalog import make_step
from edgeexport.dataset import Dataset, Row
from edgeexport.errors import PlanError, UnknownName
from edgeexport.graph import Graph
from edgeexport.plan import Host, Plan, buckets, default_lengths, make_plan
from edgeexport.quantization import Quantization
from edgeexport.recipe import Recipe
from edgeexport.resolve import JUDGING, Resolved
from edgeexport.session.text import TextSpec
from edgeexport.source import BaseModel, Leaf
from edgeexport.store import action_key, describe_change
from edgeexport.target import Target

STAND_INS = ("ai-edge-litert==2.3.0", "ai-edge-litert==2.1.0", "onnxruntime==1.31.1", "tflite-runtime==2.14.0")
HOST = Host(isa=("x86_64", "avx2"), fingerprint="this machine", agent="agent", environments={name: f"lock of {name}" for name in STAND_INS})
LANES = {
    "litert": {"format": "tflite", "runtime": "ai-edge-litert", "version": ">=2.1", "precision": "dynamic-int8", "verified_by": STAND_INS[0]},
    "onnx": {"format": "onnx", "runtime": "onnxruntime", "version": ">=1.17", "precision": "dynamic-int8", "verified_by": STAND_INS[2]},
    "old": {"format": "tflite", "runtime": "tflite-runtime", "version": ">=2.14", "precision": "weight-only-int8", "verified_by": STAND_INS[3]},
}


def target(name: str = "board", lanes: tuple[str, ...] = ("litert", "onnx"), **changes: dict[str, Any]) -> Target:
    """A target with some of the lanes above; `changes` are to a lane by its name."""
    return Target.model_validate({
        "schema": 1, "name": name, "title": name, "device": {"isa": "aarch64", "cpu": "x", "cores": 2, "ram_mb": 512},
        "lanes": [{"name": lane, **LANES[lane], **changes.get(lane, {})} for lane in lanes]})


def leaf(kind: Kind, text: str) -> Leaf:
    return Leaf(where="store", artifact=Artifact(tree={"file": Blob(digest=text, size=4)}, spec=Spec(kind=kind)))


def resolved(*, recipe: dict[str, Any] | None = None, data: tuple[str, ...] = ("probes",), max_length: int = 64, own: int = 64,
             kind: Kind = Kind.CHECKPOINT, weights: str = "weights", parameters: int = 1000, task: Task = Task.SENTENCE_SIMILARITY) -> Resolved:
    sections = {"schema": 1, "name": "x", "model": {"source": "some/model"}} | (recipe or {})
    rows = {name: Dataset(name=name, rows=(Row(id="1", text=name),), origin=name) for name in data}
    text = TextSpec(max_length=max_length, own_max_length=own, pad_id=0, inputs=("input_ids", "attention_mask"))
    spec = Spec(kind=kind, task=task, architecture="bert", precision="float32", parameters=parameters, bytes=4 * parameters,
                facts={"labels": [], "problem_type": None, "licence": None})
    return Resolved(Recipe.model_validate(sections), leaf(Kind.SOURCE, weights), spec, text, rows,
                    {name: leaf(Kind.DATASET, f"rows of {name}") for name in data}, judging=tuple(name for name in JUDGING if name in data))


def keys(plan: Plan) -> dict[str, str]:
    return {node.id: node.key for node in plan.nodes.values()}


def changed(before: Plan, after: Plan) -> set[str]:
    """Ids of the nodes that have another key, or are in one plan only."""
    old, new = keys(before), keys(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


MEASURING = {f"measure_{what}[{lane}]" for what in ("answers", "speed")
             for lane in ("ai-edge-litert: tflite-dynamic-int8", "onnxruntime: onnx-dynamic-int8")}
ALL = {"load_checkpoint", "export_tflite", "quantize_tflite[dynamic-int8]", "assemble_payload[tflite-dynamic-int8]",
       "inspect_model[tflite-dynamic-int8]", "export_onnx", "quantize_onnx[dynamic-int8]", "assemble_payload[onnx-dynamic-int8]",
       "inspect_model[onnx-dynamic-int8]", "compute_reference", *MEASURING}
REFERENCE = {"compute_reference"}
ANSWERS = {name for name in MEASURING if "answers" in name}
SPEED = MEASURING - ANSWERS
ONNX = {name for name in ALL if "onnx" in name}
TFLITE = {name for name in ALL if "tflite" in name or "litert" in name}


# -- the graph


def test_a_plan_has_every_step_once_each_after_those_it_needs() -> None:
    plan = make_plan(resolved(), [target()], HOST)
    assert set(plan.nodes) == ALL
    seen: set[str] = set()
    for node in plan.nodes.values():
        assert {reference for reference in node.inputs.values() if not reference.startswith("@")} <= seen
        assert {reference[1:] for reference in node.inputs.values() if reference.startswith("@")} <= set(plan.leaves)
        seen.add(node.id)
    assert set(plan.wanted) == {"compute_reference", *MEASURING, *(name for name in ALL if name.startswith(("assemble", "inspect")))}
    assert {node.id for node in plan.nodes.values() if node.alone} == SPEED


def test_targets_share_every_step_that_does_not_differ() -> None:
    other = target("other", ("litert", "old"))
    plan = make_plan(resolved(), [target(), other], HOST)
    added = {"quantize_tflite[weight-only-int8]", "assemble_payload[tflite-weight-only-int8]", "inspect_model[tflite-weight-only-int8]",
             "measure_answers[tflite-runtime: tflite-weight-only-int8]", "measure_speed[tflite-runtime: tflite-weight-only-int8]"}
    assert set(plan.nodes) == ALL | added
    lanes = {(lane.target.name, lane.lane.name): lane for lane in plan.lanes}
    assert lanes["board", "litert"].answers == lanes["other", "litert"].answers
    assert len(plan.users_of("export_tflite")) == 2


def test_lanes_with_the_same_runtime_in_two_versions_are_measured_apart() -> None:
    older = target("older", ("litert",), litert={"verified_by": STAND_INS[1]})
    plan = make_plan(resolved(), [target(), older], HOST)
    answers = {lane.target.name: plan.nodes[str(lane.answers)] for lane in plan.lanes if lane.lane.name == "litert"}
    assert answers["board"].step.stand_in == STAND_INS[0]  # type: ignore[attr-defined]
    assert answers["older"].step.stand_in == STAND_INS[1]  # type: ignore[attr-defined]
    assert answers["board"].key == keys(make_plan(resolved(), [target()], HOST))[str(answers["board"].id)]
    assert len(set(keys(plan).values())) == len(plan.nodes)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 5), max_size=2)), min_size=1, max_size=7))
def test_one_key_is_one_node(steps: list[tuple[str, list[int]]]) -> None:
    ids: list[str] = []
    built = {}
    for number, (text, needs) in enumerate(steps):
        ids.append(f"n{number}")
        built[f"n{number}"] = (Write(text=text), [j for j in needs if j < number])
    # What each node is made of, down to the texts: two that are equal in this are the same.
    meanings: dict[str, Any] = {}
    for name, (step, needs) in built.items():
        meanings[name] = (step.text, tuple(meanings[f"n{j}"] for j in needs))
    graph, real = Graph({}), {}
    for name, (step, needs) in built.items():
        real[name] = graph.must(name, step, {f"i{place}": real[f"n{j}"] for place, j in enumerate(needs)})
    assert len(graph.nodes) == len(set(meanings.values()))
    for one in ids:
        for other in ids:
            assert (real[one] == real[other]) == (meanings[one] == meanings[other])
    assert len({node.key for node in graph.nodes.values()}) == len(graph.nodes)


def test_equal_ids_of_different_steps_do_not_hide_each_other() -> None:
    graph = Graph({})
    names = [graph.must("write", Write(text=text), {}) for text in "aba"]
    assert names == ["write", "write (2)", "write"]
    assert [graph.nodes[name].step for name in names] == [Write(text="a"), Write(text="b"), Write(text="a")]


def test_a_step_refuses_an_input_of_the_wrong_kind() -> None:
    graph = Graph({"source": leaf(Kind.SOURCE, "w")})
    with pytest.raises(PlanError, match="export_onnx can't take a source as its checkpoint"):
        graph.must("export_onnx", make_step("export_onnx", opset=18), {"checkpoint": "@source"})


# -- keys


@pytest.mark.parametrize(("after", "expected"), [
    (lambda: make_plan(resolved(), [target()], HOST), set()),
    (lambda: make_plan(resolved(), [target("renamed")], HOST), set()),
    (lambda: make_plan(resolved(recipe={"name": "other", "metric": {"max_drop": 0.5}, "budget": {"size_mb_max": 1}}), [target()], HOST), set()),
    (lambda: make_plan(resolved(weights="other weights"), [target()], HOST), ALL),
    (lambda: make_plan(resolved(recipe={"export": {"opset": 20}}), [target()], HOST), ONNX),
    (lambda: make_plan(resolved(recipe={"export": {"lengths": [32, 64]}}), [target()], HOST), TFLITE | SPEED),
    (lambda: make_plan(resolved(), [target()], Host(("x86_64",), HOST.fingerprint, HOST.agent, HOST.environments)), ANSWERS),
    (lambda: make_plan(resolved(), [target()], Host(HOST.isa, "another machine", HOST.agent, HOST.environments)), SPEED),
    (lambda: make_plan(resolved(), [target()], Host(HOST.isa, HOST.fingerprint, "another agent", HOST.environments)), MEASURING),
    (lambda: make_plan(resolved(), [target()], Host(HOST.isa, HOST.fingerprint, HOST.agent, dict.fromkeys(STAND_INS, "new lock"))), MEASURING),
    (lambda: make_plan(resolved(data=("probes", "texts")), [target()], HOST), ANSWERS | REFERENCE),
])
def test_a_key_changes_with_what_its_result_depends_on_and_with_nothing_else(after: Callable[[], Plan], expected: set[str]) -> None:
    assert changed(make_plan(resolved(), [target()], HOST), after()) == expected


def test_another_version_of_a_backend_changes_the_keys_of_its_steps_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_plan(resolved(), [target()], HOST)
    version = step_module.version_of
    monkeypatch.setattr(step_module, "version_of", lambda name: "99" if name == "onnxruntime" else version(name))
    after = make_plan(resolved(), [target()], HOST)
    assert changed(before, after) == ONNX - {"export_onnx"}
    told = describe_change(after.nodes["quantize_onnx[dynamic-int8]"].parts, before.nodes["quantize_onnx[dynamic-int8]"].parts)
    assert len(told) == 1
    assert told[0].startswith("backends.onnxruntime: ")
    assert told[0].endswith(" → 99")


def test_a_steps_own_code_changes_its_key_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_plan(resolved(), [target()], HOST)
    digest = step_module.code_digest
    monkeypatch.setattr(step_module, "code_digest", lambda name: "edited" if name.endswith(".quantize_tflite") else digest(name))
    after = make_plan(resolved(), [target()], HOST)
    assert changed(before, after) == TFLITE - {"export_tflite"}
    name = "assemble_payload[tflite-dynamic-int8]"
    assert describe_change(after.nodes[name].parts, before.nodes[name].parts) == ["inputs.model"]


def test_a_key_is_the_digest_of_the_nodes_parts() -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (Shout(), {"given": "a"})})
    for node in plan.nodes.values():
        inputs = {name: plan.key_of(reference) for name, reference in node.inputs.items()}
        assert node.key == action_key(node.step.key_parts(), inputs)
        assert node.parts["inputs"] == inputs


def test_only_what_optional_lanes_alone_need_is_dispensable() -> None:
    plan = make_plan(resolved(), [target(litert={"required": False})], HOST)
    steps = {plan.nodes[node].step.name for node in plan.dispensable}
    assert steps == {"export_tflite", "quantize_tflite", "assemble_payload", "inspect_model", "measure_answers", "measure_speed"}
    assert not any("onnx" in node for node in plan.dispensable)
    assert make_plan(resolved(), [target()], HOST).dispensable == frozenset()
    alone = target(litert={"required": False}, onnx={"required": False})
    assert make_plan(resolved(), [alone], HOST).dispensable == frozenset()
    # What another target requires is not dispensable, whatever this one says.
    both = make_plan(resolved(), [target(litert={"required": False}), target("other", ("litert",))], HOST)
    assert both.dispensable == frozenset()


# -- the reference and the data


def test_the_original_is_also_asked_uncut_where_the_recipe_cuts_texts_earlier() -> None:
    data = ("probes", "evaluation")
    for options, uncut in (({"max_length": 32, "own": 64, "data": data}, ("evaluation",)), ({"data": data}, ()), ({"max_length": 32, "own": 64}, ())):
        plan = make_plan(resolved(**options), [target()], HOST)
        assert plan.nodes[plan.reference].step.untruncated == uncut


def test_nothing_that_makes_a_model_reads_the_data_that_judge_it() -> None:
    data = ("probes", "texts", "evaluation", "calibration")
    plan = make_plan(resolved(data=data), [target(lanes=("litert", "onnx", "old"), onnx={"precision": "static-int8"})], HOST)

    def leaves(node_id: str) -> set[str]:
        inputs = plan.nodes[node_id].inputs.values()
        return {i for i in inputs if i.startswith("@")}.union(*(leaves(i) for i in inputs if not i.startswith("@")))

    payloads = [str(lane.payload) for lane in plan.lanes]
    assert leaves("assemble_payload[onnx-static-int8]") == {"@source", "@calibration"}
    assert set().union(*map(leaves, payloads)) == {"@source", "@calibration"}
    assert set(plan.nodes["compute_reference"].inputs.values()) == {"load_checkpoint", "@probes", "@texts", "@evaluation"}
    assert all("@calibration" not in plan.nodes[str(lane.answers)].inputs.values() for lane in plan.lanes)


def test_a_source_becomes_the_original_before_anything_else() -> None:
    """A quantized one is unpacked, an adapter's base model comes first; exports and reference start from the end of that."""
    plain = resolved()
    packed = replace(plain, quantization=Quantization(method="gptq", bits=4, zero_offset=1))
    base = BaseModel("some/base", False, leaf(Kind.SOURCE, "base weights"), plain.spec, {"head": Task.FEATURE_EXTRACTION})
    for case, first, chain in ((packed, "@source", ["load_checkpoint", "dequantize_checkpoint"]),
                               (replace(plain, base=base), "@base", ["load_checkpoint", "merge_adapter"]),
                               (replace(packed, base=base), "@base", ["load_checkpoint", "dequantize_checkpoint", "merge_adapter"])):
        plan = make_plan(case, [target()], HOST)
        assert set(plan.nodes) == ALL | set(chain)
        assert plan.nodes["load_checkpoint"].inputs == {"source": first}
        for before, after in pairwise(chain):
            assert plan.nodes[after].inputs["checkpoint"] == before
        assert plan.checkpoint == chain[-1]
        for user in ("export_onnx", "export_tflite", "compute_reference", "assemble_payload[onnx-dynamic-int8]"):
            assert plan.nodes[user].inputs["checkpoint"] == chain[-1]
        if case.base is not None:
            assert plan.nodes["merge_adapter"].inputs["adapter"] == "@source"
            other = replace(case, base=replace(base, leaf=leaf(Kind.SOURCE, "other weights")))
            assert changed(plan, make_plan(other, [target()], HOST)) == set(plan.nodes)


def test_without_targets_a_plan_is_that_of_the_reference() -> None:
    assert set(make_plan(resolved(), [], HOST).nodes) == {"load_checkpoint", "compute_reference"}


# -- precision


def test_a_float_lane_has_no_quantizing_step() -> None:
    plan = make_plan(resolved(recipe={"precision": {"onnx": {"preset": "float32"}}}), [target(lanes=("onnx",))], HOST)
    assert plan.nodes["assemble_payload[onnx-float32]"].inputs == {"checkpoint": "load_checkpoint", "model": "export_onnx"}
    assert not any(name.startswith("quantize") for name in plan.nodes)


def test_overrides_make_another_variant_beside_the_plain_one() -> None:
    lanes = {"onnx": {"preset": "dynamic-int8", "overrides": [{"match": "*value*", "scheme": "float"}]}}
    second = LANES["onnx"] | {"name": "plain"}
    both = target(lanes=("onnx",)).model_copy(update={"lanes": (*target(lanes=("onnx",)).lanes, type(target().lanes[0]).model_validate(second))})
    plan = make_plan(resolved(recipe={"precision": {"lanes": lanes}}), [both], HOST)
    variants = [str(lane.variant) for lane in plan.lanes]
    assert variants[1] == "onnx-dynamic-int8"
    assert variants[0].startswith("onnx-dynamic-int8-")
    assert sum(name.startswith("quantize_onnx") for name in plan.nodes) == 2


# -- refusals, all before any work


def refused(*args: Any, **kwargs: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        make_plan(*args, **kwargs)
    return caught.value


def test_static_without_calibration_is_refused_with_what_to_add() -> None:
    error = refused(resolved(), [target(onnx={"precision": "static-int8"})], HOST)
    assert error.what == "board: the required lane 'onnx' is not possible."
    assert "static-int8 needs texts to measure activation ranges on" in str(error.why)
    assert "[data.calibration]" in str(error.hint)
    possible = make_plan(resolved(data=("probes", "calibration")), [target(onnx={"precision": "static-int8"})], HOST)
    assert possible.nodes["quantize_onnx[static-int8]"].inputs["ranges"] == "measure_ranges[onnx]"
    assert possible.nodes["measure_ranges[onnx]"].inputs["calibration"] == "@calibration"


def with_precision(lane: str, **precision: Any) -> dict[str, Any]:
    return {"precision": {"lanes": {lane: precision}}}


def test_precisions_that_differ_by_less_static_operators_share_their_ranges() -> None:
    def plan(*overrides: tuple[str, str], **options: Any) -> Plan:
        rules = [{"match": match, "scheme": scheme} for match, scheme in overrides]
        recipe = with_precision("litert", preset="static-int8", overrides=rules, **options)
        return make_plan(resolved(recipe=recipe, data=("probes", "calibration")), [target(lanes=("litert",))], HOST)

    def ranges(plan: Plan) -> str:
        (node,) = (node for node in plan.nodes.values() if node.step.name == "measure_ranges")
        return node.key

    whole = ranges(plan())
    assert ranges(plan(("classifier", "dynamic"), ("*.0.*", "float"))) == whole
    assert ranges(plan(ranges="entropy")) == whole
    assert ranges(plan(("op:GELU", "static"))) != whole
    assert len({node.key for each in (plan(), plan(ranges="entropy")) for node in each.nodes.values() if node.step.name == "quantize_tflite"}) == 2


def test_ranges_of_a_saved_model_are_measured_too() -> None:
    plan = make_plan(resolved(recipe=with_precision("litert", preset="static-int8"), data=("probes", "calibration"), kind=Kind.SAVED_MODEL),
                     [target(lanes=("litert",))], HOST)
    assert any(node.step.name == "measure_ranges" for node in plan.nodes.values())


def test_smoothing_is_measured_for_the_lane_that_has_it() -> None:
    data = ("probes", "calibration")
    plan = make_plan(resolved(recipe=with_precision("litert", preset="static-int8", smoothing=0.5), data=data), [target()], HOST)
    (outliers,) = (node for node in plan.nodes.values() if node.step.name == "measure_outliers")
    assert [node.step.name for node in plan.users_of(outliers.id)] == ["export_tflite"]
    assert outliers.inputs == {"checkpoint": "load_checkpoint", "calibration": "@calibration"}
    with pytest.raises(PlanError, match="nothing to smooth in the lane 'litert'"):
        make_plan(resolved(recipe=with_precision("litert", preset="dynamic-int8", smoothing=0.5), data=data), [target()], HOST)


def test_an_optional_lane_that_is_not_possible_is_left_out_with_its_reason() -> None:
    plan = make_plan(resolved(), [target(onnx={"precision": "static-int8", "required": False})], HOST)
    litert, onnx = plan.lanes
    assert (onnx.variant, onnx.payload, onnx.answers, onnx.speed) == (None, None, None, None)
    assert onnx.refusal is not None
    assert "needs texts" in onnx.refusal.reason
    assert litert.variant == "tflite-dynamic-int8"
    assert "quantize_onnx[static-int8]" not in plan.nodes


def test_a_lane_for_other_tasks_is_no_part_of_the_plan_and_no_reason_to_refuse_the_build() -> None:
    plan = make_plan(resolved(), [target(onnx={"tasks": ["fill-mask"]})], HOST)
    assert [lane.lane.name for lane in plan.lanes] == ["litert"]


def test_a_target_without_any_possible_lane_is_refused_with_all_reasons() -> None:
    hopeless = target("hopeless", ("litert", "onnx"), litert={"tasks": ["fill-mask"]}, onnx={"precision": "static-int8", "required": False})
    error = refused(resolved(), [target(), hopeless], HOST)
    assert error.what == "No lane of hopeless is possible."
    assert error.why == "onnx: static-int8 needs texts to measure activation ranges on"
    hopeless = target("hopeless", ("litert", "onnx"), litert={"tasks": ["fill-mask"]}, onnx={"tasks": ["fill-mask"]})
    assert refused(resolved(), [target(), hopeless], HOST).why == "none of them serves sentence-similarity"


def test_an_unknown_precision_in_the_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Unknown onnx precision 'dynamic-in8'"):
        make_plan(resolved(recipe={"precision": {"onnx": {"preset": "dynamic-in8"}}}), [target()], HOST)


def test_two_targets_of_one_name_are_refused() -> None:
    assert refused(resolved(), [target("board"), target("board", ("onnx",))], HOST).what == "Two targets are called 'board'."


def test_length_buckets_that_end_elsewhere_than_the_longest_text_are_refused() -> None:
    error = refused(resolved(recipe={"export": {"lengths": [16, 32]}}), [target()], HOST)
    assert error.what == "export.lengths ends at 32, but the longest text has 64 tokens."
    assert "model.max_length = 32" in str(error.hint)


# -- length buckets


@pytest.mark.parametrize(("longest", "expected"), [(8, (8,)), (16, (16,)), (17, (16, 17)), (64, (16, 32, 64)), (100, (16, 32, 64, 100)),
                                                   (512, (16, 32, 64, 128, 256, 512))])
def test_buckets_double_from_16_up_to_the_longest_text(longest: int, expected: tuple[int, ...]) -> None:
    assert default_lengths(longest) == expected


@given(st.integers(3, 10_000))
def test_any_text_fits_a_bucket_of_at_most_twice_its_length(longest: int) -> None:
    lengths = default_lengths(longest)
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == longest
    assert all(later <= 2 * earlier for earlier, later in pairwise(lengths))


def test_the_recipes_buckets_win() -> None:
    assert buckets(resolved(recipe={"export": {"lengths": [10, 64]}})) == (10, 64)
    assert buckets(resolved()) == (16, 32, 64)

"""A plan: recipe × targets worked out to an ordered graph of steps. Pure: it reads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeexport.artifact import Artifact, Kind, Spec, Task
from edgeexport.catalog import make_step
from edgeexport.compression import plan_compression
from edgeexport.errors import PlanError
from edgeexport.graph import Graph, Node
from edgeexport.loading import plan_loading
from edgeexport.policy import Policy
from edgeexport.resolve import Resolved
from edgeexport.source import Leaf
from edgeexport.step import Refusal
from edgeexport.target import PACKED, Lane, Target

SHORTEST_LENGTH = 16
# Of a language model, the pieces in which prompts are read: a short one for what a user says next, and a long one.
PREFILL_LENGTHS = (16, 128)
# Source: SmoothQuant, section 4.1, which takes half for most models; SmolLM2's distance from its original is least there too, of 0.3 to 0.7.
DECODER_SMOOTHING = 0.5


@dataclass(frozen=True)
class Way:
    """The converters that a source goes through: to export each format, and to compute its reference."""

    export: Mapping[str, str]
    reference: str


WAYS = {
    Kind.CHECKPOINT: Way({"onnx": "export_onnx", "tflite": "export_tflite"}, "compute_reference"),
    Kind.SAVED_MODEL: Way({"tflite": "convert_saved_model"}, "compute_saved_model_reference"),
}
WAY_OF_DECODERS = Way({"onnx": "export_decoder_onnx", "tflite": "export_decoder_tflite"}, "compute_generation_reference")


def way_of(spec: Spec) -> Way:
    """The way that a source goes."""
    return WAY_OF_DECODERS if spec.task is Task.TEXT_GENERATION else WAYS[spec.kind]


@dataclass(frozen=True)
class Host:
    """What a plan needs to know of the machine that measures.

    Attributes:
        isa: instruction set and its extensions.
        fingerprint: digest of what speed depends on.
        agent: digest of the measuring agent.
        environments: stand-in → digest of its environment's lock.
    """

    isa: tuple[str, ...]
    fingerprint: str
    agent: str
    environments: Mapping[str, str]


@dataclass(frozen=True)
class LanePlan:
    """A lane of a target: what is made for it, or why it is not offered.

    Attributes:
        target: the target.
        lane: the lane.
        variant: name of the variant it runs; None where it is not offered.
        exported: id of the node that makes its model in float32.
        payload: id of the node that makes its payload.
        answers: id of the node that measures its answers.
        speed: id of the node that measures its speed.
        inspection: id of the node that looks into its model file.
        refusal: why it is not offered.
        served: whether the lane is for such a model at all; where it is not, nobody misses it.
    """

    target: Target
    lane: Lane
    variant: str | None = None
    exported: str | None = None
    payload: str | None = None
    answers: str | None = None
    speed: str | None = None
    inspection: str | None = None
    refusal: Refusal | None = None
    served: bool = True

    @property
    def ends(self) -> list[str]:
        """The ids of the nodes whose artifacts a bundle and its verdict are made of; none where it is not offered."""
        return [node for node in (self.payload, self.answers, self.speed, self.inspection) if node is not None]


@dataclass(frozen=True)
class Plan:
    """The graph.

    Attributes:
        nodes: id → node, each after the nodes it needs.
        leaves: name → input from outside.
        lanes: all lanes of all targets, offered or not.
        checkpoint: id of the node that loads the checkpoint.
        reference: id of the node with the answers that parity is measured against: in float32, those of the checkpoint that is exported.
        original: where that one was made smaller, id of the node with the original's answers to the evaluation data; else the reference.
    """

    nodes: Mapping[str, Node]
    leaves: Mapping[str, Leaf]
    lanes: tuple[LanePlan, ...]
    checkpoint: str
    reference: str
    original: str

    def key_of(self, reference: str) -> str:
        """The key of a node, or the digest of a leaf, by how inputs refer to it."""
        return self.leaves[reference[1:]].artifact.digest if reference.startswith("@") else self.nodes[reference].key

    def spec_of(self, reference: str) -> Spec:
        """The spec of a node or a leaf, by how inputs refer to it."""
        return self.leaves[reference[1:]].artifact.spec if reference.startswith("@") else self.nodes[reference].spec

    @property
    def wanted(self) -> list[str]:
        """The ids of the nodes whose artifacts bundles and verdicts are made of."""
        ends = [self.reference, self.original]
        for lane in self.lanes:
            ends += lane.ends
        return list(dict.fromkeys(ends))

    @property
    def dispensable(self) -> frozenset[str]:
        """The nodes that only optional lanes need: a failure there costs the lane and not the build.

        Where all lanes of a target are optional, none of them is.
        """
        with_required = {lane.target.name for lane in self.lanes if lane.lane.required}
        optional = [lane for lane in self.lanes if not lane.lane.required and lane.target.name in with_required]
        others = [lane for lane in self.lanes if lane not in optional]
        return self._with_inputs(node for lane in optional for node in lane.ends) - self._with_inputs(
            [self.reference, self.original, *(node for lane in others for node in lane.ends)])

    def _with_inputs(self, ends: Iterable[str]) -> frozenset[str]:
        """The nodes and all that they need, directly or not."""
        found: set[str] = set()
        open_ids = list(ends)
        while open_ids:
            node_id = open_ids.pop()
            if node_id not in found:
                found.add(node_id)
                open_ids += [reference for reference in self.nodes[node_id].inputs.values() if not reference.startswith("@")]
        return frozenset(found)

    def users_of(self, node_id: str) -> list[Node]:
        """The nodes that need a node."""
        return [node for node in self.nodes.values() if node_id in node.inputs.values()]


def make_plan(resolved: Resolved, targets: Sequence[Target], host: Host) -> Plan:
    """The graph that builds and measures every lane of the targets; without targets, that of the reference alone.

    Raises:
        PlanError: a required lane is not possible, or none of a target is, or the recipe does not fit the model or the targets.
    """
    _require_fit(resolved, targets)
    sources = {"source": resolved.source} | ({"base": resolved.base.leaf} if resolved.base else {})
    graph = Graph({name: with_digests(leaf) for name, leaf in sources.items()} | resolved.leaves)
    way = way_of(resolved.spec)
    loaded = plan_loading(graph, resolved)
    checkpoint = plan_compression(graph, resolved, loaded)

    judging = {name: f"@{name}" for name in resolved.judging}
    task = resolved.spec.require_task()
    lanes = tuple(_plan_lane(graph, resolved, target, lane, checkpoint, loaded, host)
                  for target in targets for lane in target.lanes if task in lane.tasks)
    for plan in lanes:
        if plan.refusal is not None and plan.served and plan.lane.required:
            raise PlanError(f"{plan.target.name}: the required lane '{plan.lane.name}' is not possible.", why=plan.refusal.reason,
                            hint=plan.refusal.hint)
    for target in targets:
        planned = [plan for plan in lanes if plan.target is target]
        reasons = [f"{plan.lane.name}: {plan.refusal.reason}" for plan in planned if plan.refusal]
        if len(reasons) == len(planned):
            raise PlanError(f"No lane of {target.name} is possible.", why="; ".join(reasons) or f"none of them serves {task}")
    # Where the recipe cuts texts earlier than the checkpoint must, the drop that counts is the one against the uncut original.
    # A language model's context is no such cut: it is compared at the same tokens as the original.
    cut_early = resolved.text.max_length < resolved.text.own_max_length and resolved.spec.task is not Task.TEXT_GENERATION
    untruncated = tuple(name for name in judging if name == resolved.labelled and cut_early)

    def answers_of(model: str, names: Sequence[str]) -> str:
        cut: dict[str, Any] = {"untruncated": tuple(name for name in names if name in untruncated)} if untruncated else {}
        step = make_step(way.reference, datasets=tuple(names), **cut)
        return graph.must(f"{way.reference}[{model}]" if model != loaded else way.reference, step,
                          {"checkpoint": model, **{name: judging[name] for name in names}})

    # Without labels nothing but the original's own answers can judge what compression cost.
    judged_by_metric = checkpoint != loaded and "evaluation" in resolved.datasets
    reference = answers_of(checkpoint if judged_by_metric else loaded, tuple(judging))
    original = answers_of(loaded, [resolved.labelled]) if judged_by_metric and resolved.labelled in judging else reference
    return Plan(graph.nodes, graph.leaves, lanes, checkpoint, reference, original)


def _require_fit(resolved: Resolved, targets: Sequence[Target]) -> None:
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f"Two targets are called '{name}'.", why="their bundles would have the same place",
                            hint="rename one of the files")
    lengths, longest = resolved.recipe.export.lengths, resolved.text.max_length
    if resolved.spec.task is Task.TEXT_GENERATION:
        if lengths is not None and lengths[-1] > longest:
            raise PlanError(f"export.lengths ends at {lengths[-1]}, but the model holds {longest} tokens.",
                            hint="lower it, or raise model.max_length")
    elif lengths is not None and lengths[-1] != longest:
        raise PlanError(f"export.lengths ends at {lengths[-1]}, but the longest text has {longest} tokens.",
                        why=f"max_length is from {resolved.text.sources.get('max_length', 'the checkpoint')}",
                        hint=f"end export.lengths at {longest}, or set model.max_length = {lengths[-1]}")


def _plan_lane(graph: Graph, resolved: Resolved, target: Target, lane: Lane, checkpoint: str, original: str, host: Host) -> LanePlan:
    if lane.model_format not in way_of(resolved.spec).export:
        return LanePlan(target, lane, refusal=Refusal(reason=f"there is no way from a {resolved.spec.kind} to {lane.format}"), served=False)
    precision, policy = resolved.recipe.policy(lane)
    exported = _export(graph, resolved, lane, checkpoint, policy)
    if isinstance(exported, Refusal):
        return LanePlan(target, lane, refusal=exported)
    model = _quantize(graph, resolved, lane, checkpoint, exported, policy, precision)
    if isinstance(model, Refusal):
        return LanePlan(target, lane, refusal=model)
    if lane.format in PACKED:
        pack = f"pack_{lane.format}"
        model = graph.must(f"{pack}[{precision}]", make_step(pack), {"checkpoint": checkpoint, "model": model})
    variant = f"{lane.format}-{precision}"
    payload = graph.must(f"assemble_payload[{variant}]", make_step("assemble_payload", variant=variant),
                         {"checkpoint": checkpoint, "model": model})
    common = {"variant": variant, "runtime": lane.runtime, "stand_in": lane.verified_by, "agent": host.agent,
              "environment": host.environments[lane.verified_by]}
    datasets = {name: f"@{name}" for name in resolved.judging}
    inspection = graph.must(f"inspect_model[{variant}]", make_step("inspect_model", variant=variant), {"payload": payload})
    measured = {"payload": payload, "inspection": inspection}
    answers = graph.must(f"measure_answers[{lane.runtime}: {variant}]",
                         make_step("measure_answers", **common, datasets=tuple(datasets), isa=host.isa), {**measured, **datasets})
    timing: dict[str, Any] = {"lengths": buckets(resolved), "host": host.fingerprint}
    if resolved.beside_original:
        timing["original"] = f"{lane.format}-float32"
        measured |= {"original": _float_payload(graph, resolved, lane, original)}
    speed = graph.must(f"measure_speed[{lane.runtime}: {variant}]", make_step("measure_speed", **common, **timing), measured, alone=True)
    return LanePlan(target, lane, variant, exported, payload, answers, speed, inspection)


def _float_payload(graph: Graph, resolved: Resolved, lane: Lane, checkpoint: str) -> str:
    """The node that makes a lane's payload in float32; only for models that can be exported."""
    exported = str(_export(graph, resolved, lane, checkpoint, Policy(default="float")))
    variant = f"{lane.format}-float32"
    return graph.must(f"assemble_payload[{variant}]", make_step("assemble_payload", variant=variant), {"checkpoint": checkpoint, "model": exported})


def _export(graph: Graph, resolved: Resolved, lane: Lane, checkpoint: str, policy: Policy) -> str | Refusal:
    """The node that makes a lane's model in float32."""
    export = way_of(resolved.spec).export[lane.model_format]
    generates, options = resolved.spec.task is Task.TEXT_GENERATION, dict[str, Any](lengths=buckets(resolved))
    if lane.model_format == "onnx":
        options = {} if generates else {"opset": resolved.recipe.export.opset}
    if generates and policy.needs_calibration:
        return Refusal(reason="a language model's activations are not measured, which static INT8 asks for",
                       hint="choose blockwise-int8 for ONNX, and dynamic-int8 for TFLite")
    inputs, calibration = {"checkpoint": checkpoint}, {"calibration": "@calibration"} if "calibration" in resolved.datasets else {}
    smoothing = policy.smoothing if policy.smoothing is not None or not generates else DECODER_SMOOTHING
    smoothable = lane.model_format == "tflite" and policy.is_dynamic if generates else policy.needs_calibration
    if policy.smoothing and not smoothable:
        raise PlanError(f"There is nothing to smooth in the lane '{lane.name}'.",
                        why="in ONNX a language model's activations are rounded in blocks" if generates else "none of its activations is static",
                        hint="take smoothing out, or choose another precision")
    if smoothing and smoothable and (generates or calibration):
        if resolved.spec.kind is not Kind.CHECKPOINT:
            return Refusal(reason=f"the outliers of a {resolved.spec.kind} can't be moved into its weights", hint="take smoothing out")
        inputs["outliers"] = graph.must("measure_outliers", make_step("measure_outliers"), inputs | calibration)
        options |= {"smoothing": smoothing} if generates else {"smoothed": policy.measured.model_copy(update={"smoothing": smoothing})}
    return graph.add(export, make_step(export, **options), inputs)


def _quantize(graph: Graph, resolved: Resolved, lane: Lane, checkpoint: str, exported: str, policy: Policy, precision: str) -> str | Refusal:
    """The node that makes a lane's model in its precision."""
    if policy == Policy(default="float"):
        return exported
    inputs = {"model": exported}
    if policy.needs_calibration:
        if "calibration" not in resolved.datasets:
            return Refusal(reason=f"{precision} needs texts to measure activation ranges on",
                           hint="add [data.calibration] to the recipe, or choose a dynamic precision")
        inputs["ranges"] = plan_ranges(graph, exported, checkpoint, policy, lane.model_format)
    name = f"quantize_{lane.model_format}"
    return graph.add(f"{name}[{precision}]", make_step(name, precision=precision, policy=policy), inputs)


def plan_ranges(graph: Graph, exported: str, checkpoint: str, policy: Policy, model_format: str) -> str:
    """The node that measures the ranges of a static policy's activations."""
    return graph.must(f"measure_ranges[{model_format}]", make_step("measure_ranges", policy=policy.measured),
                      {"model": exported, "checkpoint": checkpoint, "calibration": "@calibration"})


def buckets(resolved: Resolved) -> tuple[int, ...]:
    """The length buckets: the recipe's; or the one that a model of fixed length has; or doubling from 16 up to the longest text.

    Of a language model, the lengths of pieces of a prompt.
    """
    if resolved.recipe.export.lengths is not None:
        return resolved.recipe.export.lengths
    if resolved.spec.task is Task.TEXT_GENERATION:
        return tuple(length for length in PREFILL_LENGTHS if 2 * length <= resolved.text.max_length) or (1,)
    fixed = resolved.spec.facts.get("fixed_length")
    if fixed is not None:
        return (fixed,)
    return default_lengths(resolved.text.max_length)


def default_lengths(longest: int) -> tuple[int, ...]:
    """Lengths that double from 16 up to the longest."""
    lengths = []
    length = SHORTEST_LENGTH
    while length < longest:
        lengths.append(length)
        length *= 2
    return (*lengths, longest)


def with_digests(leaf: Leaf) -> Leaf:
    """The leaf with its files' digests in the spec, where the step that copies them checks them."""
    digests = {name: blob.digest for name, blob in leaf.artifact.tree.items()}
    spec = leaf.artifact.spec.model_copy(update={"kind": Kind.SOURCE, "facts": {"digests": digests}, "bytes": leaf.artifact.size})
    return leaf.model_copy(update={"artifact": Artifact(tree=leaf.artifact.tree, spec=spec)})

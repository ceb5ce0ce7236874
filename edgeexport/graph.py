"""A graph of steps in the making: what each would produce, and the key by which its result is found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeexport.artifact import Spec
from edgeexport.errors import PlanError
from edgeexport.source import Leaf
from edgeexport.step import Refusal, Step
from edgeexport.store import action_key


@dataclass(frozen=True)
class Node:
    """A step in its place.

    Attributes:
        id: a readable name, unique in the plan.
        step: the step.
        inputs: input name → id of the node that makes it, or ``@`` and the name of a leaf.
        spec: what will come out.
        parts: what the key is made of.
        key: the action key.
        alone: whether nothing may run beside it.
    """

    id: str
    step: Step
    inputs: Mapping[str, str]
    spec: Spec
    parts: Mapping[str, Any]
    key: str
    alone: bool = False


@dataclass
class Graph:
    """A graph in the making: a step that is there already is not added again."""

    leaves: dict[str, Leaf]
    nodes: dict[str, Node] = field(default_factory=dict)

    def add(self, node_id: str, step: Step, inputs: Mapping[str, str], *, alone: bool = False) -> str | Refusal:
        """Add a step; returns its id, that of an equal step which is there already, or why it is not possible."""
        specs = {name: self.spec(reference) for name, reference in inputs.items()}
        for name, kinds in step.consumes.items():
            if specs[name].kind not in kinds:
                raise PlanError(f"{step.name} can't take a {specs[name].kind} as its {name}.")
        spec = step.infer(specs)
        if isinstance(spec, Refusal):
            return spec
        parts = step.key_parts()
        keys = {name: self._key(reference) for name, reference in inputs.items()}
        key = action_key(parts, keys)
        for node in self.nodes.values():
            if node.key == key:
                return node.id
        node_id = self._free(node_id)
        self.nodes[node_id] = Node(node_id, step, dict(inputs), spec, parts | {"inputs": keys}, key, alone)
        return node_id

    def must(self, node_id: str, step: Step, inputs: Mapping[str, str], *, alone: bool = False) -> str:
        """The same for a step that the plan can't do without."""
        added = self.add(node_id, step, inputs, alone=alone)
        if isinstance(added, Refusal):
            raise PlanError(f"{node_id} is not possible.", why=added.reason, hint=added.hint)
        return added

    def _free(self, node_id: str) -> str:
        """The id, or with a number where another step has it: two targets may mean different things by the same words."""
        ids = (node_id if number == 1 else f"{node_id} ({number})" for number in itertools.count(1))
        return next(each for each in ids if each not in self.nodes)

    def spec(self, reference: str) -> Spec:
        """The spec of a node or a leaf, by how inputs refer to it."""
        return self.leaves[reference[1:]].artifact.spec if reference.startswith("@") else self.nodes[reference].spec

    def _key(self, reference: str) -> str:
        return self.leaves[reference[1:]].artifact.digest if reference.startswith("@") else self.nodes[reference].key

"""Adapters as PEFT saves them, with seeded random weights; and taking a source in as a plan does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import MODEL_CLASSES
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.graph import Graph
from edgeexport.loading import plan_loading
from edgeexport.plan import with_digests
from edgeexport.recipe import ModelSection, recipe_for
from edgeexport.resolve import Resolved, resolve
from edgeexport.step import View
from edgeexport.store import Store


def write_adapter(directory: Path, base: Path, task: Task, config: Any, **settings: Any) -> Any:
    """Write an adapter to a base model, changed at random where it can be trained; returns PEFT's model, in which it is not merged.

    Args:
        directory: gets the adapter; it names the base model as `base`.
        base: the base model.
        task: decides the class that is adapted, and so the head.
        config: PEFT's configuration.
        settings: keys of config.json for the class, such as num_labels.
    """
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(1)
    model = getattr(transformers, MODEL_CLASSES[task]).from_pretrained(base, dtype="float32", **settings)
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(directory)
    return adapted


def resolved(zoo: Zoo, source: str | Path, directory: Path = Path(), **section: Any) -> Resolved:
    """What a recipe's `[model]` names, found."""
    model = ModelSection(source=str(source), **section)
    recipe = recipe_for("x").model_copy(update={"model": model, "directory": directory.absolute()})
    return resolve(recipe, Store(zoo.place("store")))


def taken_in(zoo: Zoo, found: Resolved) -> View:
    """The original as an artifact: every step that a plan has for it is run."""
    leaves = {"source": found.source} | ({"base": found.base.leaf} if found.base else {})
    graph = Graph({name: with_digests(leaf) for name, leaf in leaves.items()})
    end = plan_loading(graph, found)
    views = {f"@{name}": View(Path(leaf.place), graph.leaves[name].artifact.spec) for name, leaf in leaves.items()}
    for node in graph.nodes.values():
        views[node.id] = zoo.run(node.step, {name: views[reference] for name, reference in node.inputs.items()})
    return views[end]

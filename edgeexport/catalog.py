"""Which module holds a step: imported on demand, so that a plan costs no framework."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import Any

from edgeexport.errors import UnknownName
from edgeexport.step import Step

CORE_STEPS = MappingProxyType({
    "assemble_payload": "edgeexport.payload",
    "inspect_model": "edgeexport.inspection.inspect_model",
    "measure_answers": "edgeexport.runner.measure_answers",
    "measure_speed": "edgeexport.runner.measure_speed",
})


@cache
def step_modules() -> dict[str, str]:
    """Step name → module. Every public file of the converters package is a converter of that name."""
    package = importlib.import_module("edgeexport.converters")
    converters = {
        info.name: f"edgeexport.converters.{info.name}"
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith("_")
    }
    return converters | CORE_STEPS


@cache
def find_step(name: str) -> type[Step]:
    """The step class registered as `name`.

    Raises:
        UnknownName: no step has that name.
    """
    modules = step_modules()
    if name not in modules:
        raise UnknownName.among("step", name, modules)
    return step_in(modules[name], name)


def step_in(module_name: str, name: str) -> type[Step]:
    """The step class called `name` that a module defines."""
    module = importlib.import_module(module_name)
    steps = [value for value in vars(module).values()
             if isinstance(value, type) and issubclass(value, Step) and getattr(value, "name", None) == name]
    if len(steps) != 1:
        raise TypeError(f"{module.__name__} must define exactly one step named '{name}', found {len(steps)}")
    return steps[0]


def make_step(name: str, **options: Any) -> Step:
    """A step by its name, with its options.

    Raises:
        UnknownName: no step has that name.
    """
    return find_step(name).model_validate(options)

"""The protocol of a step: one cached operation of the graph.

A step is a frozen value whose fields are its options. It describes what it would produce (:meth:`Step.infer`), or refuses in plain
words, before any work; then it works (:meth:`Step.run`). Whatever it needs to know of the target is an option too: the key that
finds its result in the store is made of nothing but code, options, backend versions and inputs, so that two targets share every
step that does not differ.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import edgeexport
from edgeexport.artifact import Kind, Model, Spec, digest_json

SESSION = f"{edgeexport.__name__}.session"
# Outside of the converters, and yet part of what they make: what text and answers mean, how a SavedModel's signature and a GGUF file are read.
SHARED = (f"{SESSION}.", f"{edgeexport.__name__}.saved_model", f"{edgeexport.__name__}.gguf_file")


class Refusal(Model):
    """Why a step can't work on these inputs, and what to do instead."""

    reason: str
    hint: str | None = None


class View(NamedTuple):
    """An input as a step sees it: a directory that must not be written to, and what is known of it."""

    path: Path
    spec: Spec


@dataclass(frozen=True)
class Context:
    """What a running step is given besides its inputs.

    Attributes:
        scratch: a directory of this action alone, which survives a crash and is removed on success.
        threads: how many threads the step may use.
        seed: seed of every random choice.
        report: called with a fraction (0 to 1, or None where unknown) and a short text of what is happening.
    """

    scratch: Path
    threads: int = 1
    seed: int = 0
    report: Callable[[float | None, str], None] = field(default=lambda fraction, message: None)


class Step(Model):
    """A cached operation. Subclasses declare their options as fields.

    Attributes:
        name: the registered name; for a converter, the name of its file.
        consumes: input name → the kinds it accepts. Inputs beyond these are optional: data sets named by the plan, and what an
            option asks for.
        backends: distributions whose versions are part of the key.
        extra: the optional dependency group that the step needs.
        heavy: whether it runs in a supervised process of its own.
        seconds_guess: how long it takes, where no run was recorded; only the order of scheduling depends on it.
    """

    name: ClassVar[str]
    consumes: ClassVar[Mapping[str, frozenset[Kind]]]
    backends: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    heavy: ClassVar[bool] = True
    seconds_guess: ClassVar[float] = 5.0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """What :meth:`run` would produce, or why it can't."""
        raise NotImplementedError

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Peak memory to reserve in MB (10^6 bytes) where no run was recorded: an interpreter with a framework, and the model twice."""
        largest = max((spec.bytes or 0 for spec in inputs.values()), default=0)
        return 700 + 4 * largest // 1_000_000

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Do the work: write the artifact's files below `out` and say what they are."""
        raise NotImplementedError

    def key_parts(self) -> dict[str, Any]:
        """What, besides the inputs, the result depends on."""
        return {
            "step": self.name,
            "code": code_digest(type(self).__module__),
            "options": self.model_dump(mode="json"),
            "backends": {name: version_of(name) for name in self.backends},
        }


@cache
def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def code_digest(module: str) -> str:
    """Digest of a step's own code: its module and every sibling in its package that it imports, directly or not.

    So count the session's modules that it imports: what text, tensors and answers mean there is part of the result, and the reference
    and the lanes must mean the same; and those that read a SavedModel. Imports from elsewhere are the stable protocol around a step and
    do not count: a new report colour must not rebuild a model.
    """
    sources: dict[str, str] = {}
    _collect_sources(module, sources)
    return digest_json(sources)


def _collect_sources(module: str, sources: dict[str, str]) -> None:
    if module in sources:
        return
    source, siblings = _source(module)
    if source is not None:
        sources[module] = source
        for name in siblings:
            _collect_sources(name, sources)


@cache
def _source(module: str) -> tuple[str | None, tuple[str, ...]]:
    """A module's source, and what it imports from its package and from the session; None for what is no module with a file."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None, ()
    source = Path(spec.origin).read_text(encoding="utf-8")
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            inside = [f"{base}.{alias.name}" for alias in node.names] if base in {package, SESSION} else [base]
            # At the top every module is a sibling.
            found += [name for name in inside
                      if name.startswith(SHARED) or (package != edgeexport.__name__ and name.startswith(f"{package}."))]
    return source, tuple(found)

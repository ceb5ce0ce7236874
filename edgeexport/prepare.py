"""What comes before a build: everything that a recipe names is found, and the graph is planned. Every refusal comes from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeexport.errors import TargetError, UnknownName
from edgeexport.plan import Host, Plan, make_plan
from edgeexport.recipe import Recipe
from edgeexport.resolve import Resolved, resolve
from edgeexport.runner import host
from edgeexport.runner.agent_archive import agent_digest
from edgeexport.runner.environment import Environment
from edgeexport.session.payload import RUNTIMES
from edgeexport.store import Store
from edgeexport.target import Target, load_target, target_names
from edgeexport.verify.margins import check_names


@dataclass(frozen=True)
class Prepared:
    """A build before any work: everything found, and the plan for this host."""

    resolved: Resolved
    plan: Plan
    host: Host
    targets: tuple[Target, ...]
    store: Store

    def planned_anew(self, recipe: Recipe) -> Prepared:
        """The same build with another recipe for the same model and data."""
        resolved = replace(self.resolved, recipe=recipe)
        return replace(self, resolved=resolved, plan=make_plan(resolved, self.targets, self.host))


def prepare(recipe: Recipe, targets: Sequence[Target], store: Store, texts: Path | None = None, *, trusted: bool = False) -> Prepared:
    """Resolve and plan; every refusal comes from here, before any work.

    Args:
        recipe: what to build.
        targets: for what; none is for the reference alone.
        store: where the steps' results lie.
        texts: unlabelled texts that replace the recipe's.
        trusted: whether code that the checkpoint brings along may be run. No recipe can say so: it may come from elsewhere.

    Raises:
        EdgeExportError: the build is not possible.
    """
    check_names(recipe.parity)
    check_lanes(recipe, targets)
    resolved = resolve(recipe, store, texts, trusted=trusted)
    stand_ins = {lane.verified_by for target in targets for lane in target.lanes}
    here = Host(isa=(host.isa(), *host.isa_features()), fingerprint=host.fingerprint(), agent=agent_digest(),
                environments={name: Environment(name).digest for name in stand_ins})
    return Prepared(resolved, make_plan(resolved, targets, here), here, tuple(targets), store)


def check_lanes(recipe: Recipe, targets: Sequence[Target]) -> None:
    """Check that the lanes' runtimes can be run here, and that lanes which the recipe names are lanes of these or the shipped targets.

    Raises:
        UnknownName: a name that stands for nothing.
        TargetError: a runtime that does not run the lane's format.
    """
    for target in targets:
        for lane in target.lanes:
            if lane.runtime not in RUNTIMES:
                raise UnknownName.among(f"runtime of the lane '{lane.name}' of {target.name}", lane.runtime, RUNTIMES)
            runs = RUNTIMES[lane.runtime].format
            if runs != lane.format:
                raise TargetError(f"The lane '{lane.name}' of {target.name} is {lane.format}, and {lane.runtime} runs {runs}.")
    if recipe.precision.lanes:
        known = {lane.name for target in (*targets, *map(load_target, target_names())) for lane in target.lanes}
        for name in recipe.precision.lanes:
            if name not in known:
                raise UnknownName.among("lane in [precision.lanes]", name, known)

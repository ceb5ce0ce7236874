"""`edgeexport plan`: the graph as a tree, each result with what it is made from, and whether it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.tree import Tree

from edgeexport.cli.model_options import choose_recipe, model_options, tell_of_source
from edgeexport.cli.terminal import json_option, megabytes, out, print_json, seconds
from edgeexport.graph import Node
from edgeexport.plan import Plan
from edgeexport.prepare import prepare
from edgeexport.schedule import pending, similar_runs
from edgeexport.store import Entry, Store, describe_change
from edgeexport.target import load_target


@click.command("plan")
@model_options
@json_option
def plan_command(model: str | None, targets: tuple[str, ...], recipe: Path | None, texts: Path | None, task: str | None,
                 max_length: int | None, trusted: bool, as_json: bool) -> int:
    """Show what a build would do, and what is stored already. Runs nothing."""
    profiles = [load_target(name) for name in dict.fromkeys(targets)]
    store = Store()
    prepared = prepare(choose_recipe(model, recipe, task, max_length, announce=not as_json), profiles, store, texts, trusted=trusted)
    tell_of_source(prepared)
    found, missing = pending(prepared.plan, prepared.plan.wanted, store, verify=False)
    data = plan_data(prepared.plan, store, set(found), set(missing))
    if as_json:
        print_json(data)
    else:
        out.print(plan_tree(prepared.plan, data))
    return 0


def plan_data(plan: Plan, store: Store, found: set[str], missing: set[str]) -> dict[str, Any]:
    """The plan as plain data: per node its state, why it must run, and predictions where runs were recorded."""
    runs = similar_runs(plan, store)
    recorded: dict[str, list[Entry]] = {}
    nodes: dict[str, dict[str, Any]] = {}
    for node in plan.nodes.values():
        state = "stored" if node.id in found else "run" if node.id in missing else "not needed"
        entries = recorded.setdefault(node.step.name, list(store.entries(node.step.name))) if state == "run" else []
        run = runs.get(node.id)
        nodes[node.id] = {
            "step": node.step.name, "state": state, "key": node.key, "inputs": dict(node.inputs), "bytes": node.spec.bytes,
            "changed": changes(plan, node, entries) if state == "run" else [],
            "seconds": run.seconds if run else None, "peak_rss_mb": run.peak_rss_mb if run else None,
        }
    to_run = [node for node in nodes.values() if node["state"] == "run"]
    predicted = [node for node in to_run if node["seconds"] is not None]
    return {
        "nodes": nodes,
        "lanes": [{"target": lane.target.name, "lane": lane.lane.name, "variant": lane.variant, "ends": [
            node for node in (lane.answers, lane.speed) if node], "not_offered": lane.refusal.reason if lane.refusal else None}
            for lane in plan.lanes],
        "predicted": {
            "steps": len(to_run),
            "disk_bytes": sum(node["bytes"] or 0 for node in to_run),
            "seconds": sum(node["seconds"] for node in predicted) if len(predicted) == len(to_run) else None,
            "peak_rss_mb": max((node["peak_rss_mb"] or 0 for node in predicted), default=None),
        },
    }


def changes(plan: Plan, node: Node, entries: list[Entry]) -> list[str]:
    """Which parts of the key differ from the most similar stored action of the step; empty where there is none."""
    found = [describe_change(node.parts, entry.parts) for entry in sorted(entries, key=lambda entry: entry.run.finished, reverse=True)]
    return min(found, key=len, default=[])


def plan_tree(plan: Plan, data: dict[str, Any]) -> Tree:
    """The plan as a tree for the terminal: targets, their lanes, and below each what it needs; a shared step is shown once in full."""
    tree = Tree("[bold]plan[/]")
    shown: set[str] = set()
    branches: dict[str, Tree] = {}
    for lane in data["lanes"]:
        branch = branches.setdefault(lane["target"], tree.add(f"[bold]{lane['target']}[/]") if lane["target"] not in branches else tree)
        if lane["not_offered"]:
            branch.add(f"[dim]{lane['lane']}: not offered: {escape(lane['not_offered'])}[/]")
            continue
        twig = branch.add(f"lane [bold]{lane['lane']}[/] → {lane['variant']}")
        for node in lane["ends"]:
            _grow(twig, node, data["nodes"], shown)
    reference = tree.add("[bold]reference[/] (the original in float32)")
    _grow(reference, plan.reference, data["nodes"], shown)
    predicted = data["predicted"]
    took = seconds(predicted["seconds"]) if predicted["seconds"] is not None else "unknown"
    peak = f"{predicted['peak_rss_mb']:,.0f} MB" if predicted["peak_rss_mb"] else "unknown"
    if not predicted["steps"]:
        tree.add(f"nothing to run: all {len(plan.nodes)} steps are stored, or not needed")
        return tree
    tree.add(f"{predicted['steps']} of {len(plan.nodes)} steps to run; new in the store about {megabytes(predicted['disk_bytes'])}; "
             f"highest peak memory of a step {peak}; one after the other {took}")
    return tree


def _grow(parent: Tree, node_id: str, nodes: dict[str, Any], shown: set[str]) -> None:
    node = nodes[node_id]
    if node_id in shown:
        parent.add(f"[dim]{escape(node_id)} (above)[/]")
        return
    shown.add(node_id)
    if node["state"] == "stored":
        text = "[green]stored[/]"
    elif node["state"] == "run":
        why = "changed: " + ", ".join(node["changed"][:3]) if node["changed"] else "new"
        text = f"[yellow]run[/] [dim]({escape(why)})[/]"
    else:
        text = "[dim]not needed[/]"
    twig = parent.add(f"{escape(node_id)}  {text}")
    for reference in node["inputs"].values():
        if not reference.startswith("@"):
            _grow(twig, reference, nodes, shown)

"""`edgeexport build` with fake steps, to be interrupted and killed: python fake_build.py build STORE. Events go to standard output."""

from __future__ import annotations

import json
from pathlib import Path

import click
from fake_steps import Hang, Write, WriteApart, plan_of

from edgeexport import cli
from edgeexport.plan import Plan
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.store import Store

LIMITS = Limits(jobs=2, cores=2, memory_mb=4000)


def plan() -> Plan:
    """first → second → hang → last."""
    return plan_of({"first": (Write(text="1"), {}), "second": (WriteApart(text="2"), {"a": "first"}), "hang": (Hang(), {"a": "second"}),
                    "last": (Write(text="3"), {"a": "hang"})})


@click.command("build")
@click.argument("root", type=click.Path(path_type=Path))
def build_command(root: Path) -> int:
    def tell(event: Event) -> None:
        click.echo(json.dumps([event.node, event.what, event.message]))

    store = Store(root)
    with store.in_use():
        Scheduler(plan(), store, LIMITS, tell).run(["last"])
    return 0


if __name__ == "__main__":
    cli.COMMANDS["build"] = "fake_build"
    cli.main()

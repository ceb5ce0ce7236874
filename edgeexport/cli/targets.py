"""`edgeexport targets`."""

from __future__ import annotations

import click
from rich.table import Table

from edgeexport.cli.terminal import json_option, out, print_json
from edgeexport.target import load_target, target_names, target_path


@click.group("targets")
def targets_command() -> None:
    """List the targets, or show one."""


@targets_command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the targets that ship with the product."""
    targets = [load_target(name) for name in target_names()]
    if as_json:
        print_json([target.model_dump(mode="json", by_alias=True) for target in targets])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("target", "device", "ISA", "lanes"):
        table.add_column(column)
    for target in targets:
        table.add_row(target.name, target.title, target.device.isa, ", ".join(lane.name for lane in target.lanes))
    out.print(table)


@targets_command.command("show")
@click.argument("name")
@click.option("--toml", "as_toml", is_flag=True, help="Print its file: the start of one of your own.")
@json_option
def show_command(name: str, as_toml: bool, as_json: bool) -> None:
    """Show a target: hardware, lanes, budgets, and where each figure is from. NAME may be a file ./board.toml."""
    target = load_target(name)
    if as_toml:
        click.echo(target_path(name).read_text(encoding="utf-8"), nl=False)
        return
    if as_json:
        print_json(target.model_dump(mode="json", by_alias=True))
        return
    device = target.device
    out.print(f"[bold]{target.name}[/]  {target.title}")
    features = ", ".join(device.features) or "no extensions named"
    out.print(f"  {device.cpu}; {device.isa} ({features}), {device.cores} cores, {device.ram_mb} MB")
    for lane in target.lanes:
        required = "required" if lane.required else "optional"
        out.print(f"\n  lane [bold]{lane.name}[/] ({required}): {lane.format}, {lane.precision}")
        out.print(f"    on the device {lane.runtime} {lane.version}; verified here by {lane.verified_by}")
        if lane.note:
            out.print(f"    [dim]{lane.note}[/]")
    limits = {key: value for key, value in target.budget.model_dump().items() if value is not None}
    if limits:
        out.print("\n  budget")
        for key, value in limits.items():
            out.print(f"    {key} = {value:g}")
    if target.sources:
        out.print("\n  sources")
        for key, source in target.sources.items():
            out.print(f"    {key}: [dim]{source}[/]")

"""`edgeexport cache`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click
from rich.table import Table

from edgeexport.cli.terminal import json_option, megabytes, out, print_json, seconds
from edgeexport.errors import EdgeExportError
from edgeexport.store import Store


@click.group("cache")
def cache_command() -> None:
    """List or prune what builds have stored."""


@cache_command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the stored actions, newest first."""
    store = Store()
    entries = sorted(store.entries(), key=lambda entry: entry.run.finished, reverse=True)
    unique = {blob.digest: blob.size for entry in entries for blob in entry.artifact.tree.values()}
    if as_json:
        print_json({"root": str(store.root), "bytes": sum(unique.values()), "actions": [
            {"step": entry.parts["step"], "key": entry.key, "bytes": entry.artifact.size, "seconds": entry.run.seconds,
             "finished": entry.run.finished, "options": entry.parts["options"]} for entry in entries]})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("step", "key", "size", "took", "finished"):
        table.add_column(column, justify="right" if column in {"size", "took"} else "left")
    for entry in entries:
        when = datetime.fromtimestamp(entry.run.finished, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.parts["step"], entry.key[:12], megabytes(entry.artifact.size), seconds(entry.run.seconds), when)
    out.print(table)
    out.print(f"{len(entries)} actions, {megabytes(sum(unique.values()))} in {store.root}", soft_wrap=True)


@cache_command.command("prune")
@click.option("--keep", required=True, metavar="SIZE", help="How much may stay, such as 2GB or 500MB; the newest stays. 0 removes all.")
@json_option
def prune_command(keep: str, as_json: bool) -> None:
    """Remove the oldest actions, and what no action needs."""
    removed, freed = Store().prune(parse_size(keep))
    if as_json:
        print_json({"removed": removed, "freed_bytes": freed})
    else:
        out.print(f"removed {removed} actions, freed {megabytes(freed)}")


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``2 GB`` or a plain number.

    Raises:
        EdgeExportError: it is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise EdgeExportError(f"'{text}' is not a size.", hint="write 500MB or 2GB")
    return int(float(match.group(1)) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match.group(2).lower()])

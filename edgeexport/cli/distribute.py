"""`edgeexport publish` and `edgeexport pull`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeexport.bundle import opened
from edgeexport.cli.terminal import json_option, out, print_json
from edgeexport.distribute.directory import publish, pull

allow_failed_option = click.option("--allow-failed", is_flag=True, help="Take it even if its verdict is not pass.")


@click.command("publish")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@allow_failed_option
@json_option
def publish_command(bundle: Path, directory: Path, allow_failed: bool, as_json: bool) -> None:
    """Put BUNDLE (a directory or an archive) into DIRECTORY, from which others pull."""
    with opened(bundle) as place:
        destination = publish(place, directory, allow_failed=allow_failed)
    if as_json:
        print_json({"published": str(destination)})
    else:
        out.print(f"published {destination}", soft_wrap=True)


@click.command("pull")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--target", "-t", required=True, help="For which target.")
@click.option("--lane", help="Only this lane.")
@click.option("--out", "-o", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path(),
              help="Where it goes; default: here.")
@allow_failed_option
@json_option
def pull_command(source: Path, target: str, lane: str | None, directory: Path, allow_failed: bool, as_json: bool) -> None:
    """Get a bundle: SOURCE is DIRECTORY/NAME."""
    destination = directory / "-".join(part for part in (source.name, target, lane) if part)
    manifest = pull(source, target, destination, lane=lane, allow_failed=allow_failed)
    if as_json:
        print_json({"pulled": str(destination), "payload": manifest.payload, "verdict": manifest.verdict.value, "scope": manifest.scope})
    else:
        out.print(f"pulled {destination}: {manifest.scope}", soft_wrap=True)

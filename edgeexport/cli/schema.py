"""`edgeexport schema`."""

from __future__ import annotations

import click
from pydantic import BaseModel

from edgeexport.bundle import Manifest
from edgeexport.cli.terminal import print_json
from edgeexport.recipe import Recipe
from edgeexport.report.model import Report
from edgeexport.target import Target

SCHEMAS: dict[str, type[BaseModel]] = {"recipe": Recipe, "target": Target, "manifest": Manifest, "report": Report}


@click.command("schema")
@click.argument("name", type=click.Choice(sorted(SCHEMAS)))
def schema_command(name: str) -> None:
    """Print the JSON Schema of a recipe, target, manifest or report."""
    print_json(SCHEMAS[name].model_json_schema(by_alias=True))

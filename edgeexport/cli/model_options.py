"""What `build` and `plan` have in common: which model, for which targets."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from edgeexport.cli.terminal import err
from edgeexport.errors import RecipeError
from edgeexport.prepare import Prepared
from edgeexport.recipe import RECIPE_FILE, ModelSection, Recipe, load_recipe, recipe_for
from edgeexport.toml_file import validated

DEMO = "help_search"

trust_option = click.option("--trust-remote-code", "trusted", is_flag=True, help="Run code that the checkpoint brings along, with your rights.")


def model_options(command: Any) -> Any:
    """What build and plan have in common."""
    for option in reversed([
        click.argument("model", required=False),
        click.option("--target", "-t", "targets", multiple=True, required=True, metavar="T",
                     help="A target's name, or a file ./board.toml. May be given several times."),
        click.option("--recipe", type=click.Path(path_type=Path), help=f"A recipe; default: {RECIPE_FILE} here."),
        click.option("--texts", type=click.Path(path_type=Path), help="Texts of yours on which parity is measured too."),
        click.option("--task", help="The task, where the checkpoint does not say it."),
        click.option("--max-length", type=int, help="Longest text in tokens; default: the model's own, for language models up to 1,024."),
        trust_option,
    ]):
        command = option(command)
    return command


def choose_recipe(model: str | None, path: Path | None, task: str | None, max_length: int | None, *, announce: bool) -> Recipe:
    """The recipe that the command line means: of a file, of a bare model, of the working directory, or the demo's.

    Raises:
        RecipeError: it is not valid.
    """
    sections = {key: value for key, value in (("task", task), ("max_length", max_length)) if value is not None}
    if path is None and model is None and Path(RECIPE_FILE).is_file():
        path = Path(RECIPE_FILE)
    if path is not None:
        recipe = load_recipe(path)
        if model is not None:
            sections["source"] = str(Path(model).absolute()) if Path(model).exists() else model
    elif model is not None:
        return recipe_for(model, model={"source": model, **sections})
    else:
        recipe = load_recipe(demo_recipe())
        if announce:
            err.print(f"No model and no {RECIPE_FILE} here: building the demo, help search with all-MiniLM-L6-v2.")
    if sections:
        section = validated(recipe.model.model_dump(exclude_none=True) | sections, ModelSection, RecipeError, "the command line")
        recipe = recipe.model_copy(update={"model": section})
    return recipe


def demo_recipe() -> Path:
    """The recipe of the demo that ships with the product."""
    return Path(str(importlib.resources.files("edgeexport.data"))) / DEMO / RECIPE_FILE


def tell_of_source(prepared: Prepared) -> None:
    """Say what a user should know of the source: that the hub could not be asked for its newest revision, that it is quantized already."""
    resolved = prepared.resolved
    sources = [(resolved.recipe.model.source, resolved.source)] + ([(resolved.base.given, resolved.base.leaf)] if resolved.base else [])
    for name, leaf in sources:
        if leaf.offline:
            err.print(f"The hub can't be reached: taking {name} at {str(leaf.revision)[:12]}, fetched earlier.")
    lossy = resolved.spec.facts.get("lossy_source")
    if lossy is not None:
        err.print(f"[yellow]warning:[/] {escape(sources[-1][0])} is quantized already ({lossy}): what that cost is in the "
                  "reference too, so no figure here shows it.")

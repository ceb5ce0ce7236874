"""`edgeexport init`."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

import click
import jinja2
from rich.markup import escape

from edgeexport.artifact import Task
from edgeexport.cli.model_options import trust_option
from edgeexport.cli.terminal import json_option, out, print_json
from edgeexport.errors import OutputError
from edgeexport.plan import PREFILL_LENGTHS, default_lengths
from edgeexport.recipe import RECIPE_FILE, load_recipe, recipe_for
from edgeexport.source import BaseModel, local_path, resolve_model
from edgeexport.store import Store
from edgeexport.text_settings import VECTOR_TASKS
from edgeexport.verify.margins import MARGINS


@click.command("init")
@click.argument("model")
@click.option("--out", "-o", "path", type=click.Path(path_type=Path), default=Path(RECIPE_FILE), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite a recipe that is there.")
@trust_option
@json_option
def init_command(model: str, path: Path, force: bool, trusted: bool, as_json: bool) -> None:
    """Write a commented recipe for a model, with what its own files say."""
    if path.exists() and not force:
        raise OutputError(f"{path} is there already.", hint="--force overwrites it")
    recipe = recipe_for(model)
    place = local_path(model, Path.cwd())
    if place is not None and not model.startswith("package:") and not Path(model).is_absolute():
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": from_recipe(place, path)})})
    found = resolve_model(recipe_for(model).model, Path.cwd(), Store(), trusted=trusted)
    checkpoint = found.model
    spec, text = checkpoint.spec(recipe.model), checkpoint.text_spec(recipe.model)
    task = spec.require_task()
    generates = task is Task.TEXT_GENERATION
    template = (importlib.resources.files("edgeexport.data") / "recipe.toml.jinja").read_text(encoding="utf-8")
    margins = {name: by_task[task] for name, by_task in MARGINS.items() if task in by_task}
    content = jinja2.Template(template, keep_trailing_newline=True, undefined=jinja2.StrictUndefined).render(
        recipe=recipe, spec=spec, text=text, task=task, revision=found.leaf.revision, base=base_name(found.base, path),
        vector=task in VECTOR_TASKS, generates=generates, margins=margins,
        lengths=[length for length in PREFILL_LENGTHS if 2 * length <= text.max_length] if generates else list(default_lengths(text.max_length)))
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"Cannot write {path}.", why=exc.strerror) from exc
    load_recipe(path)  # what was written must be readable
    if as_json:
        print_json({"recipe": str(path), "task": task.value, "architecture": spec.architecture, "max_length": text.max_length})
    else:
        out.print(f"wrote {path}: {task.value}, {spec.architecture}, up to {text.max_length} tokens")
        option = "" if path.absolute() == Path(RECIPE_FILE).absolute() else f" --recipe {path}"
        out.print(f"next: [bold]edgeexport build --target raspberrypi{escape(option)}[/]")


def from_recipe(place: str | Path, recipe: Path) -> str:
    """A directory as a recipe names it: its paths count from where it lies."""
    return Path(os.path.relpath(place, recipe.absolute().parent)).as_posix()


def base_name(base: BaseModel | None, recipe: Path) -> str | None:
    """An adapter's base model as a recipe would name it; the adapter's own paths count from the adapter."""
    if base is None or base.leaf.where == "hub" or base.given.startswith("package:") or Path(base.given).is_absolute():
        return base.given if base else None
    return from_recipe(base.leaf.place, recipe)

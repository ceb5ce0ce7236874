"""Read a TOML file into a schema, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from edgeexport.errors import EdgeExportError

Schema = TypeVar("Schema", bound=BaseModel)


def read_toml(path: Path, schema: type[Schema], error: type[EdgeExportError], extra: dict[str, Any] | None = None) -> Schema:
    """The file's content as `schema`; `extra` adds keys that the file does not hold.

    Raises:
        error: the file can't be read, is not TOML, or does not fit the schema.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise error(f"Cannot read {path}.", why=str(exc)) from exc
    except tomllib.TOMLDecodeError as exc:
        raise error(f"{path} is not valid TOML.", why=str(exc)) from exc
    return validated(data | (extra or {}), schema, error, str(path))


def validated(data: dict[str, Any], schema: type[Schema], error: type[EdgeExportError], where: str) -> Schema:
    """`data` as `schema`.

    Raises:
        error: with the dotted key, what was expected, and the nearest valid key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = None
        if first["type"] == "extra_forbidden":
            known = _keys_beside(schema, first["loc"])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
            raise error(f"Unknown key '{key}' in {where}.", hint=hint) from exc
        why = first["msg"] if first["type"] == "missing" else f"{first['msg']} (got {first['input']!r})"
        raise error(f"Key '{key}' in {where} is not valid." if key else f"{where} is not valid.", why=why) from exc


def _keys_beside(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where the last key of `loc` stands."""
    current: type[BaseModel] = schema
    for part in loc[:-1]:
        if isinstance(part, str) and part in current.model_fields:
            nested = _nested_schema(current.model_fields[part].annotation)
            if nested is None:
                return []
            current = nested
    return sorted(current.model_fields)


def _nested_schema(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _nested_schema(argument)
        if found is not None:
            return found
    return None

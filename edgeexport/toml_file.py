"""Read a TOML file into a schema, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

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
    extra = extra or {}
    for key in data.keys() & extra.keys():
        raise error(f"Unknown key '{key}' in {path}.", why=f"it is not the file's to say; it is '{extra[key]}'")
    return validated(data | extra, schema, error, str(path))


def validated(data: dict[str, Any], schema: type[Schema], error: type[EdgeExportError], where: str) -> Schema:
    """`data` as `schema`.

    Raises:
        error: with the dotted key, what was expected, and the nearest valid key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as exc:
        # A misspelt key is also a missing one; the spelling is what to mend.
        errors = exc.errors()
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys_beside(schema, first["loc"])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
            raise error(f"Unknown key '{key}' in {where}.", hint=hint) from exc
        if first["type"] == "missing":
            why = "it is required, and missing"
        elif first["type"] == "value_error":
            why = first["msg"].removeprefix("Value error, ")
        else:
            why = f"{first['msg']} (got {first['input']!r})"
        raise error(f"Key '{key}' in {where} is not valid." if key else f"{where} is not valid.", why=why) from exc


def _keys_beside(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where the last key of `loc` stands."""
    current: type[BaseModel] | None = schema
    inside = False  # a table or list of schemas: the next part chooses one of them
    for part in loc[:-1]:
        if inside:
            inside = False
            continue
        field = _fields(current).get(str(part))
        if field is None:
            return []
        current = _nested_schema(field.annotation)
        inside = get_origin(field.annotation) in {dict, tuple, list}
    return sorted(_fields(current))


def _fields(schema: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """The fields by the names that a file gives them."""
    fields = schema.model_fields if schema is not None else {}
    return {field.alias or name: field for name, field in fields.items() if not field.exclude}


def _nested_schema(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _nested_schema(argument)
        if found is not None:
            return found
    return None

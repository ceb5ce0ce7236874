"""Which opsets, IR versions and operator versions each version of a runtime has: data, and what a model asks for beyond it.

The data are ``runtimes/NAME.toml``, measured by ``scripts/measure_operator_versions.py``. That a runtime has an operator says only
that it loads the file; whether the answers are right is measured in the lane.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from edgeexport.artifact import Model
from edgeexport.errors import RuntimeUnavailable, StepFailed, TargetError, UnknownName
from edgeexport.inspection.model import ModelReport, OperatorUse
from edgeexport.target import Format
from edgeexport.toml_file import read_toml


class Capability(Model):
    """What one version of a runtime has.

    In the files, `operators` and `custom` of a version hold only what is new or raised since the version before; :func:`known` puts
    them together.

    Attributes:
        source: where this entry comes from.
        ir: highest ONNX IR version.
        opsets: operator domain → highest opset.
        operators: operator → its highest version, or lowest and highest where the lowest is not 1.
        custom: operators from outside the format's own set; None where nobody looked.
        weights_behind_flatbuffer: whether it finds weights that lie behind the flatbuffer (TFLite's Buffer.offset).
        wrong_per_channel: operators that refuse, or silently compute wrongly, INT8 weights with a scale per channel where activations are
            floating point.
    """

    source: str
    ir: int | None = None
    opsets: dict[str, int] = {}
    operators: dict[str, int | tuple[int, int]] = {}
    custom: tuple[str, ...] | None = None
    weights_behind_flatbuffer: bool = True
    wrong_per_channel: tuple[str, ...] = ()


class RuntimeTable(Model):
    """A runtime's file: version → what it has."""

    runtime: str
    format: Format
    versions: dict[str, Capability]


def _folder() -> Path:
    return Path(str(importlib.resources.files("edgeexport.runner"))) / "runtimes"


@functools.cache
def known(runtime: str) -> RuntimeTable:
    """What is known of a runtime, versions rising, each entry complete.

    Raises:
        UnknownName: nothing is known of it.
    """
    path = _folder() / f"{runtime}.toml"
    if not path.is_file():
        raise UnknownName.among("runtime", runtime, [file.stem for file in _folder().glob("*.toml")])
    table = read_toml(path, RuntimeTable, RuntimeUnavailable)
    complete: dict[str, Capability] = {}
    operators: dict[str, int | tuple[int, int]] = {}
    custom: tuple[str, ...] | None = None
    for version in sorted(table.versions, key=Version):
        entry = table.versions[version]
        operators = operators | entry.operators
        if entry.custom is not None:
            custom = tuple(sorted({*(custom or ()), *entry.custom}))
        complete[version] = entry.model_copy(update={"operators": operators, "custom": custom})
    return table.model_copy(update={"versions": complete})


def oldest_admitted(specifier: str) -> str:
    """The oldest version that a range such as ``>=2.14,<2.15`` names: what runs there runs on the whole range.

    Raises:
        TargetError: it is no range of versions, or has no lower end.
    """
    try:
        ends = [Version(part.version) for part in SpecifierSet(specifier) if part.operator in {">=", "==", "~="}]
    except (InvalidSpecifier, InvalidVersion) as exc:
        raise TargetError(f"'{specifier}' is not a range of versions.", hint="write it like '>=2.14,<2.15'") from exc
    if not ends:
        raise TargetError(f"The range '{specifier}' has no lower end.", hint="add one, such as '>=2.14'")
    return str(max(ends))


def require_runnable(inspection: Path, stand_in: str) -> None:
    """Refuse a model file before it is run in a stand-in that does not have what it asks for.

    Args:
        inspection: what was found in the file.
        stand_in: ``name==version``.

    Raises:
        StepFailed: says what is missing.
    """
    runtime, _, version = stand_in.partition("==")
    report = ModelReport.model_validate_json(inspection.read_text(encoding="utf-8"))
    found = problems(report, runtime, version, wrong=False)
    if found:
        raise StepFailed(f"{stand_in} cannot run {report.file}.", why="; ".join(found[:3]),
                         hint="choose another precision or a lower export.opset, or a stand-in and device with a newer runtime")


def problems(report: ModelReport, runtime: str, version: str, *, wrong: bool = True) -> list[str]:
    """What a model asks for and a runtime of that version does not have, one plain sentence each; empty where it should load.

    With `wrong`, also what it has and is known to compute wrongly.

    A version that is not in the table is taken for the highest known one at or below it: what a runtime has, later versions keep.

    Raises:
        UnknownName: nothing is known of the runtime.
        TargetError: that is not a version.
    """
    table = known(runtime)
    if report.format != table.format:
        return [f"{runtime} runs {table.format} files, and {report.file} is an {report.format} file"]
    try:
        wanted = Version(version)
    except InvalidVersion as exc:
        raise TargetError(f"'{version}' is not a version.") from exc
    at_or_below = [entry for entry in table.versions if Version(entry) <= wanted]
    if not at_or_below:
        return [f"nothing is known of {runtime} {version}: the oldest known version is {next(iter(table.versions))}"]
    has = table.versions[at_or_below[-1]]
    name = f"{runtime} {version}"
    found = [*_file_problems(report, has, name)]
    for use in report.operators:
        found += _operator_problems(use, report, has, name)
        if wrong and use.per_channel and not use.custom and use.name in has.wrong_per_channel:
            found.append(f"{use.name} with INT8 weights of one scale per channel gives wrong answers in {name}")
    return list(dict.fromkeys(found))  # an operator that computes in two ways is listed twice


def _file_problems(report: ModelReport, has: Capability, name: str) -> Iterator[str]:
    if report.ir_version is not None and has.ir is not None and report.ir_version > has.ir:
        yield f"IR version {report.ir_version} is newer than {name}'s {has.ir}"
    for domain, opset in report.opsets.items():
        # Other domains' operators are checked one by one.
        if opset > has.opsets.get(domain, opset):
            yield f"opset {opset}{'' if domain == 'ai.onnx' else f' of {domain}'} is newer than {name}'s {has.opsets[domain]}"
    if report.weights_behind_flatbuffer and not has.weights_behind_flatbuffer:
        yield f"weights lie behind the flatbuffer, where {name} does not look"


def _operator_problems(use: OperatorUse, report: ModelReport, has: Capability, name: str) -> Iterator[str]:
    if use.custom:
        if has.custom is not None and use.name not in has.custom:
            yield f"custom operator {use.name} is not in {name}"
        return
    if report.format == "tflite":
        versions = has.operators.get(use.name)
        if versions is None:
            yield f"operator {use.name} is not in {name}"
            return
        lowest, highest = (1, versions) if isinstance(versions, int) else versions
        if use.version > highest:
            yield f"{use.name} version {use.version} is newer than what {name} has ({highest})"
        elif use.version < lowest:
            yield f"{use.name} version {use.version} is older than what {name} has ({lowest} to {highest})"

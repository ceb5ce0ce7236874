"""`edgeexport inspect`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click
from rich.table import Table

from edgeexport.bundle import opened, read_inspections, read_manifest
from edgeexport.cli.terminal import json_option, megabytes, out, print_json
from edgeexport.inspection import ModelReport, inspect_file
from edgeexport.inspection.model import Value

MOST_ROWS = 8


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what is in a model file (.onnx, .tflite, .litertlm), or in every variant of a bundle.

    Inputs and outputs of each signature, operators with their versions and how they compute, bytes by tensor group, what is still float,
    and what is stored twice.
    """
    if path.is_dir() or path.suffix == ".zip":
        with opened(path) as place:
            manifest = read_manifest(place)
            reports = read_inspections(place, manifest)
            lanes = {name: lane.scope for name, lane in manifest.lanes.items()}
        if as_json:
            print_json({"name": manifest.name, "target": manifest.target, "payload": manifest.payload, "lanes": lanes,
                        "variants": {name: report.model_dump(mode="json") for name, report in reports.items()}})
            return
        out.print(f"[bold]{manifest.name}[/] for {manifest.target}; task {manifest.task}; licence {manifest.licence or 'not stated'}")
        for name, scope in lanes.items():
            out.print(f"  lane {name}: {manifest.lanes[name].variant} in {manifest.lanes[name].runtime} [dim]({scope})[/]")
        for name, report in reports.items():
            out.print()
            show(report, name)
        return
    report = inspect_file(path)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        show(report, path.name)


def show(report: ModelReport, title: str) -> None:
    """Print a model file's contents, at 80 columns."""
    versions = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in report.opsets.items())
    form = f"{report.format}{f', IR {report.ir_version}' if report.ir_version else ''}{f', opset {versions}' if versions else ''}"
    out.print(f"[bold]{title}[/]  {megabytes(report.bytes)}, {form}")
    for signature in report.signatures:
        ends = [", ".join(folded(values)) for values in (signature.inputs, signature.outputs)]
        out.print(f"  {signature.name}: {ends[0]} → {ends[1]}", markup=False)
    out.print(_operators(report))
    out.print(_weights(report))
    for label, share in (("weights stored as INT8", report.integer_weight_share), ("multiply-accumulates in INT8", report.integer_compute_share)):
        out.print(f"  {label}: {'none there' if share is None else f'{100 * share:.1f} %'}")
    if report.float_weights:
        out.print("  largest weights still float:")
        for weight in report.float_weights[:MOST_ROWS]:
            out.print(f"    {megabytes(weight.bytes):>9}  {weight.name} {list(weight.shape)}", markup=False)
    wasted = sum(twice.wasted_bytes for twice in report.stored_twice)
    out.print(f"  stored twice: {megabytes(wasted) if wasted else 'nothing'}")
    for twice in report.stored_twice[:MOST_ROWS]:
        out.print(f"    {megabytes(twice.wasted_bytes):>9}  {' = '.join(twice.names[:3])}", markup=False)


def folded(values: Iterable[Value]) -> list[str]:
    """Inputs or outputs in words; those that differ by a number in their names, as caches of layers do, are one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for value in values:
        shape = ", ".join(map(str, value.shape))
        groups.setdefault((re.sub(r"\d+", "#", value.name), f"{value.dtype}[{shape}]"), []).append(value.name)
    return [f"{names[0] if len(names) == 1 else f'{len(names)} × {form}'} {kind}" for (form, kind), names in groups.items()]


def _operators(report: ModelReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column, justify in (("  operator", "left"), ("version", "right"), ("count", "right"), ("computes in", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for use in report.operators:
        table.add_row(f"  {use.name}", str(use.version), str(use.count), "[dim]-[/]" if use.computes == "other" else use.computes)
    return table


def _weights(report: ModelReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column, justify in (("  weights", "left"), ("type", "left"), ("tensors", "right"), ("numbers", "right"), ("bytes", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for group in report.weight_groups:
        table.add_row(f"  {group.group}", group.dtype, str(group.tensors), f"{group.elements:,}", megabytes(group.bytes))
    table.add_row("  everything else", "", "", "", megabytes(report.overhead_bytes))
    return table

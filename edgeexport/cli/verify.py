"""`edgeexport verify`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from edgeexport.bundle import opened
from edgeexport.cli.terminal import EXIT_CODES, err, json_option, out, print_json, styled
from edgeexport.verify_bundle import verify_bundle


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--lane", "lanes", multiple=True, help="Only this lane. May be given several times.")
@json_option
def verify_command(bundle: Path, lanes: tuple[str, ...], as_json: bool) -> int:
    """Check a bundle: every file against its digest, and the golden vectors of every lane whose runtime can run here."""
    with opened(bundle) as place, err.status("verifying") as status:
        found = verify_bundle(place, lanes, status.update)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return EXIT_CODES[found.verdict]
    out.print(f"[bold]{found.name}[/] for {found.target}: {found.files} files are what was sealed, payload {found.payload[:12]}")
    table = Table(box=None, pad_edge=False)
    for column in ("lane", "golden vectors", "distance", "allowed", "to the original", "where"):
        table.add_column(column)
    for lane in found.lanes:
        if lane.distance is None:
            table.add_row(lane.lane, styled(None), "", "", "", lane.problem or "")
        else:
            table.add_row(lane.lane, styled(lane.verdict), f"{lane.distance:.1e}", f"{lane.tolerance:.1e}", f"{lane.reference_distance:.1e}", lane.where)
    out.print(table)
    out.print(f"reference: {found.reference}")
    out.print(f"recorded:  {styled(found.recorded)}[dim]{found.scope.removeprefix(found.recorded.value)}[/]")
    out.print(f"verdict:   {styled(found.verdict)}")
    return EXIT_CODES[found.verdict]

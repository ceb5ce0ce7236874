"""`edgeexport verify`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from edgeexport.bundle import opened
from edgeexport.cli.build import default_limits
from edgeexport.cli.model_options import trust_option
from edgeexport.cli.progress import LineProgress
from edgeexport.cli.terminal import EXIT_CODES, err, json_option, out, print_json, styled
from edgeexport.recipe import DataFile
from edgeexport.report.model import interval_text
from edgeexport.runner import host
from edgeexport.store import Store
from edgeexport.verify.check import together
from edgeexport.verify.intervals import Estimate
from edgeexport.verify_bundle import RecomputedLane, verify_against_source, verify_bundle


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--lane", "lanes", multiple=True, help="Only this lane. May be given several times.")
@click.option("--source", help="The checkpoint the bundle was made from: recompute the reference with it. Needs --data.")
@click.option("--data", type=click.Path(path_type=Path), help="Texts, or labelled rows, on which original and lanes are compared anew.")
@click.option("--corpus", type=click.Path(path_type=Path), help="For retrieval: the texts that the rows of --data find.")
@trust_option
@json_option
def verify_command(bundle: Path, lanes: tuple[str, ...], source: str | None, data: Path | None, corpus: Path | None, trusted: bool,
                   as_json: bool) -> int:
    """Check a bundle: every file against its digest, and the golden vectors of every lane whose runtime can run here.

    With --source and --data the original is computed anew, and every lane compared with it on your data.
    """
    if (source is None) != (data is None):
        raise click.UsageError("--source and --data go together")
    with opened(bundle) as place:
        with err.status("verifying") as status:
            found = verify_bundle(place, lanes, status.update)
        recomputed: list[RecomputedLane] = []
        if source is not None and data is not None:
            with LineProgress() as progress:
                file = DataFile(file=data.absolute(), corpus=corpus.absolute() if corpus else None)
                recomputed = verify_against_source(place, source, file, lanes, default_limits(None, None), Store(), progress.tell,
                                                   trusted=trusted)
            verdict = together([found.verdict, *(lane.verdict for lane in recomputed)]) or found.verdict
            found = found.model_copy(update={"reference": f"recomputed from {source}", "verdict": verdict})
    if as_json:
        print_json(found.model_dump(mode="json") | {"recomputed": [lane.model_dump(mode="json") for lane in recomputed]})
        return EXIT_CODES[found.verdict]
    out.print(f"[bold]{found.name}[/] for {found.target}: {found.files} files are what was sealed, payload {found.payload[:12]}")
    table = Table(box=None, pad_edge=False)
    for column in ("lane", "golden", "distance", "allowed", "to original", "run in"):
        table.add_column(column)
    for lane in found.lanes:
        if lane.distance is None:
            table.add_row(lane.lane, styled(lane.verdict), "", "", "", escape(lane.problem or ""))
        else:
            table.add_row(lane.lane, styled(lane.verdict), f"{lane.distance:.1e}", f"{lane.tolerance:.1e}",
                          "" if lane.reference_distance is None else f"{lane.reference_distance:.1e}", lane.where.rpartition(", ")[2])
    out.print(table)
    out.print(f"[dim]golden vectors run on this {host.describe()}; distances are relative[/]")
    for recomputation in recomputed:
        for check in recomputation.checks:
            figure = interval_text(check.figure) if isinstance(check.figure, Estimate) else check.note or ""
            out.print(f"  {recomputation.lane}: {check.name} {figure} {styled(check.verdict)}")
    out.print(f"reference: {found.reference}")
    out.print(f"recorded:  {styled(found.recorded)}[dim]{found.scope.removeprefix(found.recorded.value)}[/]")
    out.print(f"verdict:   {styled(found.verdict)}")
    return EXIT_CODES[found.verdict]

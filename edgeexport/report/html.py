"""The report as a page."""

from __future__ import annotations

from edgeexport.report.model import Report


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page."""
    return f"<pre>{report.model_dump_json(indent=1)}</pre>"

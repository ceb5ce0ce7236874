"""The audit: whether a file that is called INT8 or INT4 is, and whether the lane's runtime has what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from edgeexport.inspection.model import ModelReport
from edgeexport.policy import PRESETS
from edgeexport.target import Lane
from edgeexport.verify.check import Check, Verdict

# Biases, normalization and small tables stay float in every INT8 scheme; in encoders down to 4M parameters they are below 2 %.
INTEGER_WEIGHTS_MIN = 0.95


def audit_checks(model: ModelReport, lane: Lane, precision: str, problems: Sequence[str]) -> list[Check]:
    """The audit of a variant's file for a lane.

    Args:
        model: what is in the file.
        lane: the lane.
        precision: the policy's name; a preset with ``int8`` or ``int4`` in its name promises what is checked, a custom one only shows it.
        problems: what in the file the runtime can't run.
    """
    checks = [Check(name=f"{lane.runtime} {lane.version} can run it", group="audit", verdict=Verdict.FAIL if problems else Verdict.PASS,
                    how=f"operator versions of the oldest {lane.runtime} that the lane admits", note="; ".join(problems) or None)]
    stored = next((words for name, words in {"int8": "INT8", "int4": "INT4 or INT8"}.items() if name in precision), None)
    if stored is not None:
        share = model.integer_weight_share or 0.0
        enough = share >= INTEGER_WEIGHTS_MIN
        verdict = (Verdict.PASS if enough else Verdict.FAIL) if precision in PRESETS[lane.model_format] else None
        left = ", ".join(list(dict.fromkeys(weight.used_by or weight.name for weight in model.float_weights))[:3])
        checks.append(Check(name=f"weights stored as {stored}", group="audit", how="counted", verdict=verdict, figure=share,
                            bound=INTEGER_WEIGHTS_MIN, note=None if enough else f"largest still float: {left}"))
    return checks

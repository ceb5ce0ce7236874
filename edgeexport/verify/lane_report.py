"""What is known of a lane, as data: what :func:`edgeexport.verify.judge.judge_lane` says, and every report shows."""

from __future__ import annotations

from typing import Any

from edgeexport.artifact import Model
from edgeexport.policy import Override, Scheme
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.metrics import MetricResult


class Group(Model):
    """Operators that are quantized together: those of a module, or those of one type without weights.

    Attributes:
        match: what an override calls them.
        scheme: how the policy computes them.
        distance: relative distance of the answers where only they are quantized.
        weights: how many weights they multiply activations with.
    """

    match: str
    scheme: Scheme
    distance: float
    weights: int


class Repair(Model):
    """How a lane was brought within its budget.

    Attributes:
        lane: the lane.
        causes: the most sensitive groups, first.
        promoted: what got a gentler precision, as the recipe says it; empty where nothing helps.
        trials: for each number of promotions that was tried, whether it keeps the margins on calibration texts.
        size_before, size_after: bytes of the file.
        latency_before, latency_after: milliseconds at the longest length, on the host.
    """

    lane: str
    causes: tuple[Group, ...]
    promoted: tuple[Override, ...] = ()
    trials: dict[int, bool] = {}
    size_before: int | None = None
    size_after: int | None = None
    latency_before: float | None = None
    latency_after: float | None = None


class GenerationSpeed(Model):
    """Speed of a language model.

    Attributes:
        prompt_tokens: length of the prompt that was read.
        first_token_ms: from the prompt to the first token of the answer, in milliseconds.
        prefill_tokens_per_second: of the prompt.
        decode_tokens_per_second: of the answer.
    """

    prompt_tokens: int
    first_token_ms: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


class SpeedReport(Model):
    """Speed and memory of a lane, on the machine that `how` names.

    Attributes:
        load_seconds: from nothing to ready to run.
        latency_ms: length in tokens → ``p50`` and ``p95`` in milliseconds.
        original_latency_ms: the same of the original in float32, timed in turn with it; None where that was not asked.
        peak_rss_mb: peak resident memory of a process that only runs this model, in MB of 2^20 bytes.
        threads: threads of an operator.
        generation: of a language model, which has it in place of latencies; its memory is that of a full context.
    """

    load_seconds: float
    latency_ms: dict[int, dict[str, float]]
    original_latency_ms: dict[int, dict[str, float]] | None = None
    peak_rss_mb: float
    threads: int
    rounds: int
    generation: GenerationSpeed | None = None
    how: str


class LaneReport(Model):
    """What is known of a lane.

    Attributes:
        variant: the variant it runs; None where the lane is not offered.
        refusal: why it is not offered.
        verdict: of all its checks.
        scope: the verdict in words, with what it covers and where it was measured.
        size_bytes: bytes of the variant's model files.
        size_ratio: those relative to the float32 weights (unique parameters × 4).
        truncated: data set → share of its texts that were cut.
        largest_difference: largest absolute difference of any output to the original, over all texts.
        distance: of the answers to the data that judge by their labels from the original's; see :func:`edgeexport.verify.judge.mean_distance`.
        golden_tolerance: relative distance that another run of the golden vectors may have from this one.
        compute: facts of the inspection that show how much is INT8.
    """

    lane: str
    format: str
    runtime: str
    runtime_version: str
    verified_by: str
    required: bool
    note: str | None = None
    variant: str | None = None
    precision: str | None = None
    refusal: str | None = None
    verdict: Verdict | None = None
    scope: str = ""
    checks: tuple[Check, ...] = ()
    metrics: tuple[MetricResult, ...] = ()
    untruncated: tuple[MetricResult, ...] = ()
    size_bytes: int | None = None
    size_ratio: float | None = None
    truncated: dict[str, float] = {}
    largest_difference: float | None = None
    distance: float | None = None
    golden_tolerance: float | None = None
    compute: dict[str, Any] = {}
    speed: SpeedReport | None = None
    repair: Repair | None = None

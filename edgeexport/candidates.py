"""What a search tries and what it wants: candidates, what they came to, and which of them are worth a try.

Bytes go with the number of weights, and latency with the number of layers and their width; so what was measured on a few candidates tells
which others should fulfil the wish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgeexport.artifact import Model
from edgeexport.recipe import CompressSection, DistillSection, EmbeddingsSection, PruneSection, VocabularySection
from edgeexport.verify.intervals import Estimate

# Shares of the layers that are tried.
DEPTHS = (1.0, 2 / 3, 1 / 2, 1 / 3)
# A model of this width is timed, untrained, to know how latency goes with width.
TIMED_WIDTH = 0.35
# Narrower than this share of its heads and neurons, a layer is better left out.
LEAST_WIDTH = 0.15
# Shares of the token table that are kept at least, each a way to divide the bytes between tokens and layers. With less of it than the least,
# tokens can't be told apart as they could.
TABLES = (0.25, 0.5)
# With fewer tokens than this share, words of the user's own texts would be cut to pieces.
LEAST_VOCABULARY = 0.3
# Numbers a token has come in such steps, as registers hold them.
RANK_STEP = 8
# Of numbers for each token, from one way to divide the bytes between tokens and layers to the next.
BALANCE_STEP = 80
USUAL_RATE = DistillSection().learning_rate
# A model that is near the original already is best trained gently, one that is far from it is not: after one epoch an NER model came to a loss of
# 0.024 with a third of the usual rate and 0.026 with the usual 3e-4, after two the demo to 0.138 and 0.127. And one that keeps more than half of
# its multiply-accumulates more gently still: half an epoch of NER with a smaller table alone came to 0.0205 with a tenth, and 0.0218 with a third.
GENTLER = 1 / 3
GENTLEST_RATE = 3e-5
NEAR = 0.5
# The demo came after 5 epochs to 0.073 with it and to 0.077 with 3e-4.
HIGHEST_RATE = 1e-3
# Predicted speed may be missed by about as much as two measurements of one model differ.
SPEED_MARGIN = 1.05
# And predicted size by what files hold besides weights: of 17 MB, up to 0.2 % more than the whole model has of it.
SIZE_MARGIN = 1.003


class Wish(Model):
    """What the user wants.

    Attributes:
        max_size_mb: of each lane's file, in MB of 10^6 bytes; None for no limit.
        max_drop: of the task metric on the development data, as a share.
        min_speedup: of each lane against its float32 form, at the shortest and the longest length; None for no limit.
        lane_speedups: the same for single lanes, in place of `min_speedup`.
        minutes: for search and training.
    """

    max_size_mb: float | None
    max_drop: float
    min_speedup: float | None
    lane_speedups: dict[str, float] = {}
    minutes: float

    def speedup(self, lane: str) -> float | None:
        """What is wanted of a lane; None for no limit."""
        return self.lane_speedups.get(lane, self.min_speedup)

    @property
    def for_speed(self) -> bool:
        """Whether a speed is wanted at all."""
        return self.min_speedup is not None or bool(self.lane_speedups)

    def misses(self, lane: LaneTrial) -> list[Miss]:
        """What a lane does not fulfil."""
        found = []
        if self.max_size_mb is not None and lane.size_bytes > self.max_size_mb * 1e6:
            found.append(Miss(limit="size", share=lane.size_bytes / (self.max_size_mb * 1e6) - 1,
                              words=f"{lane.lane}: {lane.size_bytes / 1e6:.4g} MB, more than {self.max_size_mb:g}"))
        dropped = self.metric_miss(lane.lane, lane.drop, lane.reference)
        if dropped is not None:
            found.append(dropped)
        wanted = self.speedup(lane.lane)
        for length, speedup in lane.speedup.items():
            if wanted is not None and speedup < wanted:
                found.append(Miss(limit="speed", share=(1 - speedup / wanted) / len(lane.speedup),
                                  words=f"{lane.lane}: {speedup:.2f} times as fast as float32 at {length} tokens, less than {wanted:g}"))
        return found

    def metric_miss(self, lane: str, drop: Estimate, reference: Estimate) -> Miss | None:
        """What is missed where the metric of a lane drops so far from the original's; None where it may."""
        if drop.value <= self.max_drop:
            return None
        return Miss(limit="metric", share=(drop.value - self.max_drop) / max(reference.value, 1e-9),
                    words=f"{lane}: the metric drops by {drop.value:.3f}, more than {self.max_drop:g}")

    def is_fulfilled(self, trial: Trial) -> bool:
        """Whether a trial keeps every limit."""
        return not trial.misses

    def is_surely_fulfilled(self, trial: Trial) -> bool:
        """Whether a trial keeps every limit, and that of the metric with the whole interval of its drop."""
        return not trial.misses and all(lane.drop.high <= self.max_drop for lane in trial.lanes)


class Candidate(Model):
    """A way to make the model smaller.

    Attributes:
        vocabulary: tokens to keep; None for all.
        rank: of the table of token vectors; None for the table as it is.
        layers: to keep; None for all.
        width: share of heads and neurons to keep.
        epochs: of training; 0 for none.
        learning_rate: of training; None for the usual one.
        precisions: lane → preset in place of its own.
        parameters: predicted number of weights.
        compute: predicted share of the original's multiply-accumulates in layers.
    """

    vocabulary: int | None = None
    rank: int | None = None
    layers: int | None = None
    width: float = 1.0
    epochs: float = 0.0
    learning_rate: float | None = None
    precisions: dict[str, str] = {}
    parameters: int
    compute: float = 1.0

    def has_the_shape_of(self, other: Candidate) -> bool:
        """Whether both are trained, and differ by nothing but that."""
        return bool(self.epochs and other.epochs) and self == other.model_copy(
            update={"epochs": self.epochs, "learning_rate": self.learning_rate})

    def trained_for(self, epochs: float) -> Candidate:
        """The same, trained for longer, and at a rate that goes with the root of the time: what can go further may take longer steps."""
        rate = (self.learning_rate or USUAL_RATE) * math.sqrt(epochs / self.epochs)
        return self.model_copy(update={"epochs": epochs, "learning_rate": float(f"{min(rate, HIGHEST_RATE):.2g}")})

    @property
    def section(self) -> CompressSection:
        """The recipe's section that says it."""
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        prune = PruneSection(layers=self.layers, heads=self.width, neurons=self.width) if self.layers is not None or self.width < 1 else None
        return CompressSection(vocabulary=VocabularySection(size=self.vocabulary) if self.vocabulary else None,
                               embeddings=EmbeddingsSection(rank=self.rank) if self.rank else None, prune=prune,
                               distill=DistillSection(epochs=self.epochs, **rate) if self.epochs else None)

    @property
    def title(self) -> str:
        """A short name for tables."""
        parts = [f"{self.vocabulary:,} tokens"] if self.vocabulary else []
        parts += [f"rank {self.rank}"] if self.rank else []
        parts += [f"{self.layers} layers"] if self.layers is not None else []
        parts += [f"width {self.width:g}"] if self.width < 1 else []
        parts += [f"{self.epochs:g} epochs"] if self.epochs else []
        parts += [f"rate {self.learning_rate:g}"] if self.learning_rate else []
        lanes: dict[str, list[str]] = {}
        for lane, name in self.precisions.items():
            lanes.setdefault(name, []).append(lane)
        parts += [f"{name} for {', '.join(names)}" for name, names in lanes.items()]
        return ", ".join(parts) or "INT8 alone"


class LaneTrial(Model):
    """What a candidate came to in a lane.

    Attributes:
        lane: the lane.
        size_bytes: of its file.
        latency_ms: length in tokens → median milliseconds.
        speedup: against float32, at the shortest and the longest length.
        metric, reference, drop: the task metric, the original's, and the difference.
        distance: of the answers to the development data from the original's.
    """

    lane: str
    size_bytes: int
    latency_ms: dict[int, float]
    speedup: dict[int, float]
    metric: Estimate
    reference: Estimate
    drop: Estimate
    distance: float

    @property
    def latency(self) -> float:
        """Milliseconds at the longest length."""
        return self.latency_ms[max(self.latency_ms)]


class Miss(Model):
    """A limit that a lane does not keep.

    Attributes:
        limit: which.
        share: by how much, as a share of the limit; for the metric, of the original's.
        words: the same in words.
    """

    limit: Literal["size", "speed", "metric"]
    share: float
    words: str


class Trial(Model):
    """An evaluated candidate.

    Attributes:
        candidate: what was tried.
        lanes: what came out in each lane that counts.
        misses: what of the wish it does not fulfil; empty where it fulfils all.
    """

    candidate: Candidate
    lanes: tuple[LaneTrial, ...]
    misses: tuple[Miss, ...]

    @property
    def shortfall(self) -> float:
        """How far it is from the wish: 0 where it is fulfilled, 1 where a limit is missed by its own size."""
        return sum(miss.share for miss in self.misses)

    @property
    def shape_shortfall(self) -> float:
        """The part of it that training does not change: of size and speed."""
        return sum(miss.share for miss in self.misses if miss.limit != "metric")

    @property
    def has_the_shape(self) -> bool:
        """Whether it is small and fast enough, which training does not change."""
        return all(miss.limit == "metric" for miss in self.misses)

    @property
    def size(self) -> int:
        """Bytes of the largest lane."""
        return max(lane.size_bytes for lane in self.lanes)

    @property
    def worst(self) -> LaneTrial:
        """The lane with the lowest metric."""
        return min(self.lanes, key=lambda lane: lane.metric.value)

    @property
    def quality(self) -> float:
        """The metric of the worst lane."""
        return self.worst.metric.value

    @property
    def distance(self) -> float:
        """Of the answers to the development data from the original's, in the lane that is farthest from it."""
        return max(lane.distance for lane in self.lanes)

    @property
    def latency(self) -> float:
        """Milliseconds at the longest length, of the slowest lane."""
        return max(lane.latency for lane in self.lanes)

    @property
    def speedup(self) -> float:
        """Against float32, of the slowest lane at its slower length."""
        return min(min(lane.speedup.values()) for lane in self.lanes)


class Timing(Model):
    """How fast a candidate is that is too far from the original to be of use, since speed does not depend on training.

    Attributes:
        candidate: what was timed.
        speedup: lane → length in tokens → how many times as fast as float32.
    """

    candidate: Candidate
    speedup: dict[str, dict[int, float]]

    @property
    def least(self) -> float:
        """Of the slowest lane at its slower length."""
        return min(min(lane.values()) for lane in self.speedup.values())


@dataclass(frozen=True)
class Outlook:
    """What is measured tells of candidates that nobody has tried.

    Attributes:
        wish: what is wanted.
        shape: of the original: ``parameters``, ``vocabulary``, ``embedding_width``, ``layers``, ``layer_parameters``; 0 where it is not known.
        whole: the whole model, in the precisions that all candidates have too.
        timing: of a narrow model; None where that was not timed.
    """

    wish: Wish
    shape: dict[str, int]
    whole: Trial
    timing: Timing | None = None

    def balances(self) -> list[Candidate]:
        """All layers, and ever more of the bytes for the table of tokens in place of heads and neurons; none where speed is wanted or size is not.

        What serves a task best must be tried: fitted to 17 MB, an NER model with whole layers and 152 numbers for each token reached an F1 of 0.485,
        and one with 0.66 of their width and 272 numbers 0.497, as the original.
        """
        if self.wish.for_speed or not self._is_known or self.shape["parameters"] <= self._room:
            return []
        layers, tokens, width = (self.shape[name] for name in ("layers", "vocabulary", "embedding_width"))
        whole = self._with_lower_rank(self._sized(layers, 1.0))
        first = whole.rank if whole is not None and whole.rank is not None else math.floor(min(TABLES) * width)
        widths = (min(1.0, self._widest_by_size(1.0, rank)) for rank in range(first, tokens * width // (tokens + width), BALANCE_STEP))
        shapes = (self._sized(layers, math.floor(found * 100) / 100) for found in widths if found >= LEAST_WIDTH)
        return [found for found in map(self._with_lower_rank, shapes) if found is not None]

    def fewer_tokens(self) -> Candidate | None:
        """Whole layers, and as many tokens as fit; None where these are too few or all fit, and where speed is wanted, which tokens don't change."""
        if self.wish.for_speed or not self._is_known:
            return None
        whole = self._sized(self.shape["layers"], 1.0)
        found = self._with_fewer_tokens(whole)
        return found if found != whole else None

    def to_time(self) -> Candidate | None:
        """A narrow model, whose speed tells that of others; None where speed is not wanted."""
        return self._sized(self.shape["layers"], TIMED_WIDTH) if self.wish.for_speed and self._is_known else None

    def structures(self) -> list[Candidate]:
        """What to train: for each number of layers the widest that should fulfil the wish, first with a smaller table of tokens and then with a
        larger one; deep ones first."""
        layers, found = self.shape["layers"], []
        for share in TABLES if self._is_known else ():
            for count in dict.fromkeys(max(1, round(depth * layers)) for depth in DEPTHS):
                rank = math.floor(share * self.shape["embedding_width"] / RANK_STEP) * RANK_STEP
                width = min(1.0, self._widest_by_speed(count / layers), self._widest_by_size(count / layers, rank))
                candidate = self._with_lower_rank(self._sized(count, math.floor(width * 100) / 100)) if width >= LEAST_WIDTH else None
                if candidate is not None and candidate.section.changes_model and candidate not in found:
                    found.append(candidate)
        return found

    def with_another_table(self, candidate: Candidate) -> Candidate | None:
        """The same layers with as many tokens as fit in place of as many numbers for each; None where these are too few, or all fit."""
        whole = self._sized(candidate.layers or self.shape["layers"], candidate.width)
        found = self._with_fewer_tokens(whole)
        return found if found != whole else None

    @property
    def _is_known(self) -> bool:
        return all(self.shape.values())

    @property
    def _room(self) -> float:
        """How many weights of 8 bits fit: what the largest lane holds besides (scales, tables in float, operators) is taken for constant, so
        that a prediction errs on the safe side."""
        if self.wish.max_size_mb is None:
            return math.inf
        return self.wish.max_size_mb * 1e6 / SIZE_MARGIN - (self.whole.size - self.shape["parameters"])

    def _sized(self, layers: int, width: float) -> Candidate:
        """A candidate of so many layers, each of a share of its heads and neurons."""
        # Heads and neurons scale what lies in attention and in feed-forward networks alike.
        compute, inside = layers / self.shape["layers"] * width, self.shape["layer_parameters"]
        return Candidate(layers=layers if layers < self.shape["layers"] else None, width=width, compute=compute,
                         precisions=self.whole.candidate.precisions, parameters=self.shape["parameters"] - inside + round(inside * compute))

    def _with_lower_rank(self, candidate: Candidate) -> Candidate | None:
        """The same with as many numbers for each token as fit; None where these are too few."""
        over = candidate.parameters - self._room
        if over <= 0:
            return candidate
        tokens, width = self.shape["vocabulary"], self.shape["embedding_width"]
        rank = math.floor((tokens * width - over) / (tokens + width) / RANK_STEP) * RANK_STEP
        if rank < math.floor(min(TABLES) * width / RANK_STEP) * RANK_STEP:
            return None
        return candidate.model_copy(update={"rank": rank, "parameters": candidate.parameters - tokens * width + rank * (tokens + width)})

    def _with_fewer_tokens(self, candidate: Candidate) -> Candidate | None:
        """The same with as many tokens as fit; None where these are too few."""
        over = candidate.parameters - self._room
        if over <= 0:
            return candidate
        dropped = math.ceil(over / self.shape["embedding_width"])
        kept = self.shape["vocabulary"] - dropped
        if kept < LEAST_VOCABULARY * self.shape["vocabulary"]:
            return None
        return candidate.model_copy(update={"vocabulary": kept, "parameters": candidate.parameters - dropped * self.shape["embedding_width"]})

    def _widest_by_size(self, depth: float, rank: int) -> float:
        """The width at which a table with so many numbers for each token fits; more than 1 where there is room left."""
        tokens, width = self.shape["vocabulary"], self.shape["embedding_width"]
        inside = self.shape["layer_parameters"]
        left = self.shape["parameters"] - inside - tokens * width + rank * (tokens + width)
        return (self._room - left) / max(1.0, inside * depth)

    def _widest_by_speed(self, depth: float) -> float:
        """The width at which every lane should be as fast as wanted, at its shortest and at its longest length.

        A layer takes a time that stays and one that goes with its width; two measured models, of full width and of another, tell both. All
        times are shares of what the original takes in float32.
        """
        widest = math.inf
        for lane in self.whole.lanes:
            wanted = self.wish.speedup(lane.lane)
            for length, speedup in lane.speedup.items():
                if wanted is None:
                    continue
                full = slope = 1 / speedup
                if self.timing is not None and lane.lane in self.timing.speedup:
                    slope = max(1e-9, full - 1 / self.timing.speedup[lane.lane][length]) / (1 - self.timing.candidate.width)
                widest = min(widest, (1 / (SPEED_MARGIN * wanted * depth) - (full - slope)) / slope)
        return widest

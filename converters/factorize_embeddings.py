"""A smaller table of token vectors that keeps every token: few numbers for each, and one matrix that makes the model's width of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, no_description
from ._examples import read_examples
from ._own_code import brings_model
from ._pruned_model import factorize, pruned_spec, save_model, token_table
from ._task_model import load_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A token counts by how often it comes, to this power: with 1 rare tokens would lose too much, with 0 frequent ones. Of 0.5, 0.75 and 1 it
# was the best for the demo, a sentiment classifier and an NER model of 384 numbers a token at ranks of 96 to 192 (development data).
# Source of the figure and of smoothing counts that way: T. Mikolov and others, "Distributed Representations of Words and Phrases and their
# Compositionality" (2013), section 2.2, for another purpose.
POWER = 0.75


class FactorizeEmbeddings(Step):
    """Replace the table of token vectors by the product of a narrower one and a matrix, as near to it as can be.

    Attributes:
        rank: numbers that a token has in the table.

    Source: the form is that of Z. Lan and others, "ALBERT" (2020), section 3.1; that frequent tokens count more, of P. Chen and others,
    "GroupReduce: Block-Wise Low-Rank Approximation for Neural Language Model Shrinking" (2018).
    """

    name: ClassVar[str] = "factorize_embeddings"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "training": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 15.0

    rank: int = Field(gt=0)

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A checkpoint of the same kind with fewer weights; refuses a rank that would save nothing."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.architecture not in ARCHITECTURES:
            return no_description(checkpoint)
        tokens, width = checkpoint.facts.get("vocabulary"), checkpoint.facts.get("embedding_width")
        if tokens and width and self.rank * (tokens + width) >= tokens * width:
            return Refusal(reason=f"two factors of rank {self.rank} are no smaller than a table of {tokens:,} tokens with {width} numbers each",
                           hint=f"choose a compress.embeddings.rank below {ceil(tokens * width / (tokens + width))}")
        return checkpoint.model_copy(update={"facts": checkpoint.facts | {"embedding_rank": self.rank}})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Count the tokens of the texts, and write the model with the two factors."""
        import numpy as np
        import torch

        torch.set_num_threads(context.threads)
        checkpoint = inputs["checkpoint"]
        if brings_model(checkpoint.path):
            raise CheckpointError("The table of a checkpoint that brings its own model code cannot be factorized.",
                                  why="what its code does with the table is not known", hint="take compress.embeddings out")
        context.report(None, "loading the model")
        model = load_model(checkpoint.path, checkpoint.spec.require_task())
        table = token_table(model).weight.detach().numpy()
        context.report(None, "counting tokens")
        counts = np.zeros(len(table))
        for example in read_examples(checkpoint, inputs["training"].path):
            np.add.at(counts, example.encoded.ids, 1)

        rows, matrix, mean = factors(table, (counts + 1) ** POWER, self.rank, context.seed)
        short, wide = factorize(model, self.rank)
        for parameter, value in ((short.weight, rows), (wide.weight, matrix.T), (wide.bias, mean)):
            parameter.data = torch.from_numpy(value.astype(np.float32))
        context.report(None, "writing")
        save_model(model, checkpoint.path, out)
        return pruned_spec(model, checkpoint.spec, out, embedding_rank=self.rank)


def factors(table: NDArray[np.float32], weights: NDArray[np.float64], rank: int, seed: int,
            ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The product of two matrices, plus a constant row, that has the least weighted squared distance from a table.

    Args:
        table: float32 [tokens, width].
        weights: of the tokens, float64 [tokens].
        rank: rows of the second matrix.
        seed: of the rotation between the two.

    Returns:
        float64 [tokens, rank], [rank, width] and [width].

    Source: C. Eckart, G. Young, "The approximation of one matrix by another of lower rank" (1936).
    """
    import numpy as np

    share = weights / weights.sum()
    mean = share @ table.astype(np.float64)
    centred = table - mean
    _, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    chosen = vectors[:, -rank:].T
    # Numbers of one size: without a rotation the first would be far larger than the last, which an INT8 scale for all of them would cost.
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(rank, rank)))
    chosen = turn @ chosen
    return centred @ chosen.T, chosen, mean

"""What a model is trained for, and measured by where a part of it is taken out: its answers, in a form that has gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeexport.artifact import Spec, Task
from edgeexport.session.tasks import first_tokens, mask_positions
from edgeexport.session.text import TextSpec

from ._examples import Example, collate
from ._task_model import joins_neighbours, named_outputs, without_padding

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VECTORS = frozenset({Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY})
# Softens the distribution over classes, so that what is unlikely counts too. Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the
# knowledge in a neural network" (2015), section 2; 2 is what DistilBERT was trained with (V. Sanh and others, 2019).
TEMPERATURE = 2.0
# Of the cosines between texts, as in contrastive training: neighbours count, far texts hardly. Source: sentence-transformers'
# MultipleNegativesRankingLoss, scale 20.
SIMILARITY_SCALE = 20.0
# Of a language model's distribution a teacher keeps so many of the likeliest tokens, and how likely all others are together: a vocabulary's worth at
# each token of a text is more than any disk holds.
LIKELIEST = 64
# Texts of a language model at once: each of their tokens has an answer as wide as the vocabulary.
TEXTS_AT_ONCE = 4
# The cosine above which two vectors are those of one text; float32 and another order of sums change it by less.
THE_SAME = 0.999
# Of probability, that a distribution has beside its likeliest tokens; float32 knows no less.
LEAST_REST = 1e-6


def has_one_class(spec: Spec) -> bool:
    """Whether the logits of checkpoints of this spec choose one class of several."""
    task, kind = spec.require_task(), spec.facts.get("problem_type")
    several = task is Task.TEXT_CLASSIFICATION and (kind in {"multi_label_classification", "regression"} or len(spec.facts["labels"]) == 1)
    return task not in VECTORS and task is not Task.QUESTION_ANSWERING and not several


class Objective:
    """The answers of a model for a task, and how far apart two are.

    Attributes:
        task: the task.
        text: how text becomes the model's inputs.
        one_class: whether logits choose one class of several.
    """

    def __init__(self, spec: Spec, text: TextSpec) -> None:
        """For checkpoints of this spec."""
        self.task, self.text = spec.require_task(), text
        self.one_class = has_one_class(spec)

    def run(self, model: PreTrainedModel, examples: Sequence[Example], **options: Any) -> tuple[torch.Tensor, Any]:
        """The answers to a batch, and Transformers' output.

        Args:
            model: as :func:`load_model` gives it.
            examples: the batch.
            options: more arguments of the model, such as ``output_hidden_states``.

        Returns:
            float32 [rows, values]: for each text its vector or logits; for tasks that answer by token, those of each word's first token, each
            mask, or of each anchor where a span is looked for.
        """
        device = next(model.parameters()).device
        batch = {name: values.to(device) for name, values in collate(examples, self.text).items()}
        if self.task is Task.TEXT_GENERATION:
            found = model(**batch, use_cache=False, **options)
            return self._rows({"logits": found.logits}, examples), found
        inner: Any = getattr(model, "module", model)  # of the wrapper for several processes
        if joins_neighbours(inner):
            batch["inputs_embeds"] = without_padding(inner, batch.pop("input_ids"), batch["attention_mask"])
        found = model(**batch, **options)
        outputs = named_outputs(found, batch["attention_mask"], self.task, self.text)
        return self._rows(outputs, examples), found

    def _rows(self, outputs: dict[str, torch.Tensor], examples: Sequence[Example]) -> torch.Tensor:
        import torch

        if len(outputs) == 2:
            values = torch.stack(list(outputs.values()), dim=-1)
        else:
            (values,) = outputs.values()
        if values.dim() == 2:
            return values
        places = [(number, position) for number, example in enumerate(examples) for position in self.positions(example)]
        rows, columns = zip(*places, strict=True)
        return values[list(rows), list(columns)]

    @property
    def at_anchors(self) -> bool:
        """Whether the rows of answers are those of the anchors."""
        return self.task is Task.QUESTION_ANSWERING or self.text.pooling == "none"

    @property
    def by_token(self) -> bool:
        """Whether a text has several rows of answers."""
        return self.at_anchors or self.task in {Task.TOKEN_CLASSIFICATION, Task.FILL_MASK, Task.TEXT_GENERATION}

    def at_once(self, texts: int) -> int:
        """How many texts there are in a batch, where others have so many."""
        return min(texts, TEXTS_AT_ONCE) if self.task is Task.TEXT_GENERATION else texts

    def enough(self, examples: int) -> int:
        """How many texts measure what so many of other tasks do: of a language model's, each token is an example."""
        return max(1, examples // 4) if self.task is Task.TEXT_GENERATION else examples

    def count(self, example: Example) -> int:
        """How many rows of answers an example has."""
        return len(self.positions(example)) if self.by_token else 1

    def positions(self, example: Example) -> list[int]:
        """Positions of the tokens that answer, for tasks that answer by token."""
        if self.task is Task.TOKEN_CLASSIFICATION:
            return first_tokens(example.encoded)
        if self.task is Task.TEXT_GENERATION:
            return list(range(example.length - 1))  # what comes after the last, nobody knows
        if self.task is Task.FILL_MASK:
            return [int(position) for position in mask_positions(self.text, example.encoded)]
        return list(example.anchors.values())

    def kept(self, answers: torch.Tensor) -> torch.Tensor:
        """What is kept of answers, float32 [rows, values], to be compared with others later: all of them; of a language model its likeliest tokens
        and the logarithms of their probabilities, float32 [rows, 2, tokens]."""
        import torch

        if self.task is not Task.TEXT_GENERATION:
            return answers
        logarithms, tokens = answers.log_softmax(dim=-1).topk(min(LIKELIEST, answers.shape[-1]), dim=-1)
        return torch.stack([tokens.to(torch.float32), logarithms], dim=1)  # ids below 2**24 are exact

    def distance(self, answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """How far answers, float32 [rows, values], are from what is :meth:`kept` of another model's: a number of about 1 where nothing is right.

        Vectors: 1 - cosine. Classes: Kullback-Leibler divergence of softened distributions. Tokens: of the distributions as they are, the likeliest
        each for itself and all others as one. Other logits: squared difference.
        """
        import torch
        from torch.nn import functional

        if self.task is Task.TEXT_GENERATION:
            theirs = wanted[:, 1]
            ours = answers.log_softmax(dim=-1).gather(1, wanted[:, 0].to(torch.int64))
            given, other = (torch.cat([each, rest(each)], dim=-1) for each in (theirs, ours))
            return functional.kl_div(other, given, log_target=True, reduction="batchmean")
        if self.task in VECTORS:
            return (1 - functional.cosine_similarity(answers, wanted, dim=-1)).mean()
        if self.one_class:
            given, other = (functional.log_softmax(logits / TEMPERATURE, dim=-1) for logits in (wanted, answers))
            return TEMPERATURE**2 * functional.kl_div(other, given, log_target=True, reduction="batchmean")
        return torch.mean((answers - wanted) ** 2)

    def similarity_distance(self, vectors: torch.Tensor, wanted: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """How far vectors are from having the neighbours that another model's vectors have: divergence of the distributions over other texts.

        The other texts are vectors of the other model too, so that there can be as many of them as memory holds: neighbours that a batch has by
        chance are few, and far. Source: Z. Wu and others, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018),
        section 3.1, for a memory of vectors; here it is the teacher's, and never old.

        Args:
            vectors: float32 [rows, width].
            wanted: the other model's for the same rows.
            others: its vectors of other texts, of length 1, float32 [others, width].
        """
        from torch.nn import functional

        cosines = [functional.normalize(each, dim=-1) @ others.T for each in (vectors, wanted)]
        itself = cosines[1] > THE_SAME  # nearest to each text is the text
        found, theirs = (functional.log_softmax((SIMILARITY_SCALE * each).masked_fill(itself, -1e4), dim=-1) for each in cosines)
        return functional.kl_div(found, theirs, log_target=True, reduction="batchmean")

    def error(self, answers: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor | None:
        """Cross entropy of the labelled examples; None where none is labelled."""
        import torch
        from torch.nn import functional

        wanted: list[int] = []
        for example in examples:
            wanted += example.truth if example.truth is not None else [-1] * self.count(example)
        if not self.one_class or all(truth == -1 for truth in wanted):
            return None
        return functional.cross_entropy(answers, torch.tensor(wanted, device=answers.device), ignore_index=-1)

    def sampled_error(self, answers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A loss whose squared gradients are the Fisher information: that of an answer drawn from the model's own distribution.

        Source: J. Martens, "New insights and perspectives on the natural gradient method" (2020), section 5. Of vectors and free logits the
        distribution is a normal one around them.
        """
        import torch
        from torch.nn import functional

        if self.one_class:
            drawn = torch.multinomial(answers.softmax(dim=-1), 1, generator=generator)[:, 0]
            return functional.cross_entropy(answers, drawn, reduction="sum")
        return (answers * torch.randn(answers.shape, generator=generator)).sum()


def rest(logarithms: torch.Tensor) -> torch.Tensor:
    """The logarithm of what probability is left beside some, float32 [rows, 1] of [rows, tokens]."""
    return (1 - logarithms.exp().sum(dim=-1, keepdim=True)).clamp_min(LEAST_REST).log()

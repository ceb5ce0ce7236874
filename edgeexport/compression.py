"""How a recipe's `[compress]` becomes steps: a smaller vocabulary, a smaller table, parts taken out, the rest fitted
to what the original does, and training towards its answers."""

from __future__ import annotations

from edgeexport.artifact import Task
from edgeexport.catalog import make_step
from edgeexport.errors import PlanError
from edgeexport.graph import Graph
from edgeexport.recipe import DistillSection, PruneSection
from edgeexport.resolve import Resolved
from edgeexport.text_settings import VECTOR_TASKS

# Of vectors. Measured on the demo after 5 epochs (distance of the vectors, divergence of the ranking of answers): 0.0726 and 0.307 by vectors
# alone; 0.0717 and 0.293 with similarities and 0.2 of the hidden states. With all of the hidden states, which take what a narrow model has for
# what nobody asks for, and a lower rate that suited them: 0.0871 (without them 0.0768).
SIMILARITIES = 0.1
HIDDEN_OF_VECTORS = 0.2
LABELS = 0.5
# What a language model hands on inside need not be the original's, and each token of a text is an example.
HIDDEN_OF_TOKENS = 0.0
BATCH_OF_TOKENS = 8
# Most words are in no entity, and soon answered as the original answers them: a mean over all words is small. Measured on an NER model after
# 1.5 epochs: distance 0.0532 with 1, 0.0451 with 4; for a classifier of texts they made no difference.
ANSWERS_BY_WORD = 4.0


def plan_compression(graph: Graph, resolved: Resolved, original: str) -> str:
    """Add the steps that make the checkpoint smaller.

    Args:
        graph: gets them.
        resolved: the recipe and its data.
        original: id of the node that loads the checkpoint.

    Returns:
        The id of the node whose checkpoint is exported.

    Raises:
        PlanError: a method has no data, or can't work on this model.
    """
    section, checkpoint = resolved.recipe.compress, original
    generates = resolved.spec.task is Task.TEXT_GENERATION
    if generates and section.embeddings:
        raise PlanError("The table of a language model is what it answers with, too.", hint="take compress.embeddings out; compress.vocabulary helps")
    if generates and section.vocabulary and "evaluation" not in resolved.datasets:
        raise PlanError("A language model with fewer tokens needs evaluation data.",
                        why="it cuts texts into other tokens than the original, and only how likely it holds texts of yours to be can be compared",
                        hint='add [data.evaluation] with file = "texts.txt"')
    if section.vocabulary is not None:
        if resolved.spec.task is Task.FILL_MASK:
            raise PlanError("The vocabulary of a model that fills in tokens is what it answers with.",
                            why="answers from two vocabularies cannot be compared", hint="take compress.vocabulary out")
        inputs = {"checkpoint": checkpoint, "training": _training(resolved, "compress.vocabulary")}
        unseen = {"development": "@development"} if "development" in resolved.datasets else {}
        trim = make_step("trim_vocabulary", size=section.vocabulary.size, datasets=("training",), reported=tuple(unseen))
        checkpoint = graph.must("trim_vocabulary", trim, inputs | unseen)
    whole = checkpoint
    if section.embeddings is not None:
        if resolved.spec.task is Task.FILL_MASK:
            raise PlanError("The table of a model that fills in tokens is what it answers with, too.", hint="take compress.embeddings out")
        factors = make_step("factorize_embeddings", rank=section.embeddings.rank)
        inputs = {"checkpoint": checkpoint, "training": _training(resolved, "compress.embeddings")}
        checkpoint = graph.must(f"factorize_embeddings[{section.embeddings.rank}]", factors, inputs)
    if section.prune is not None:
        checkpoint = _prune(graph, resolved, section.prune, original, checkpoint)
    if section.reconstruct and not generates and checkpoint != whole and "training" in resolved.datasets:
        checkpoint = graph.must("reconstruct_layers", make_step("reconstruct_layers"),
                                {"checkpoint": checkpoint, "original": whole, "training": "@training"})
    if section.distill is not None:
        # What comes next can only be taught in the same tokens.
        checkpoint = _distill(graph, resolved, section.distill, whole if generates else original, checkpoint)
    return checkpoint


def _training(resolved: Resolved, key: str) -> str:
    """The training data as an input.

    Raises:
        PlanError: there are none.
    """
    if "training" not in resolved.datasets:
        raise PlanError(f"{key} needs training data.", why="it goes by texts like those that the model will read",
                        hint='add [[data.training]] with file = "texts.txt" (one text a line; labels are used where there are some)')
    return "@training"


def _prune(graph: Graph, resolved: Resolved, section: PruneSection, original: str, checkpoint: str) -> str:
    """What counts in a model is measured on the original, whatever table of tokens the checkpoint has, so that all tables share it."""
    measured = original
    if section.layers is not None:
        # Of a language model each layer takes minutes; of others all are measured at once, for the search asks for one number after another.
        down_to = section.layers if resolved.spec.task is Task.TEXT_GENERATION else 1
        order = graph.must("measure_layers", make_step("measure_layers", down_to=down_to),
                           {"checkpoint": original, "training": _training(resolved, "compress.prune.layers")}, alone=True)
        drop = make_step("drop_layers", layers=section.layers)
        checkpoint = graph.must(f"drop_layers[{section.layers}]", drop, {"checkpoint": checkpoint, "order": order})
        if section.heads < 1 or section.neurons < 1:
            measured = graph.must(f"drop_layers[{section.layers}, to measure]", drop, {"checkpoint": original, "order": order})
    if section.heads < 1 or section.neurons < 1:
        inputs = {"checkpoint": measured}
        if section.importance == "gradient":
            inputs["training"] = _training(resolved, "compress.prune.importance")
        importance = graph.must("measure_channels", make_step("measure_channels", method=section.importance), inputs, alone=True)
        checkpoint = graph.must(f"prune_channels[{section.heads:g}, {section.neurons:g}]",
                                make_step("prune_channels", heads=section.heads, neurons=section.neurons),
                                {"checkpoint": checkpoint, "importance": importance})
    return checkpoint


def _distill(graph: Graph, resolved: Resolved, section: DistillSection, original: str, student: str) -> str:
    task = resolved.spec.require_task()
    inputs = {"student": student, "training": _training(resolved, "compress.distill")}
    labelled = graph.spec("@training").facts["labelled"] and task in {Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION}
    vectors = task in VECTOR_TASKS
    defaults = {"answers": ANSWERS_BY_WORD if task is Task.TOKEN_CLASSIFICATION else 1.0, "similarities": SIMILARITIES if vectors else 0.0,
                "hidden": HIDDEN_OF_VECTORS if vectors else 1.0, "labels": LABELS if labelled else 0.0}
    if task is Task.TEXT_GENERATION:
        defaults |= {"hidden": HIDDEN_OF_TOKENS}
    options = defaults | section.model_dump(exclude_none=True)
    if task is Task.TEXT_GENERATION and "batch" not in section.model_fields_set:
        options["batch"] = BATCH_OF_TOKENS
    outputs = make_step("compute_teacher", hidden=section.hidden_after if options["hidden"] else (), relations=section.relations > 0)
    # Alone, so that it gets all cores.
    inputs["teacher"] = graph.must("compute_teacher", outputs, {"checkpoint": original, "texts": "@training"}, alone=True)
    if "development" in resolved.datasets:
        answers = make_step("compute_teacher", hidden=(), relations=False)
        inputs["development"] = "@development"
        inputs["development_teacher"] = graph.must("compute_teacher[development]", answers, {"checkpoint": original, "texts": "@development"})
    return graph.must("distill", make_step("distill", **options), inputs, alone=True)

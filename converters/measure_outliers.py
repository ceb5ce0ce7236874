"""How large the inputs of each linear layer become, channel by channel, on calibration data; or on what a language model writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError
from edgeexport.policy import Policy
from edgeexport.step import Context, Refusal, Step, View

from ._examples import by_length, read_examples
from ._objective import Objective
from ._overrides import Matcher
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

OUTLIERS_FILE = "outliers.npz"
BATCH = 32
# What a language model writes. Of SmolLM2's divergence, simulated, this leaves 0.0066; half as many texts, or texts half as long and twice as many,
# 0.0072 and 0.0073; and texts twice as long, half as many, 0.0067 in twice the time.
WRITTEN_TEXTS, WRITTEN_TOKENS = 8, 128


class MeasureOutliers(Step):
    """Run a checkpoint on calibration data and keep the largest absolute values. A language model needs none: it writes its own."""

    name: ClassVar[str] = "measure_outliers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 15.0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A number for each input channel."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["checkpoint"].task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write for each linear layer, by its path: float32 [inputs]. Padding counts too: a device computes it as well."""
        import numpy as np
        import torch
        from transformers.pytorch_utils import Conv1D

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        model, objective = load_model(path, spec.require_task()), Objective(spec, read_text(path))
        found: dict[str, Any] = {}

        def note(name: str) -> Any:
            def hook(linear: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                largest = given[0].abs().reshape(-1, given[0].shape[-1]).amax(dim=0)
                found[name] = torch.maximum(found[name], largest) if name in found else largest
            return hook

        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | Conv1D):
                module.register_forward_pre_hook(note(name))
        if "calibration" in inputs:
            batches = list(by_length(read_examples(inputs["checkpoint"], inputs["calibration"].path), BATCH))
            with torch.inference_mode():
                for number, batch in enumerate(batches):
                    context.report(number / len(batches), "measuring outliers")
                    objective.run(model, batch)
        else:
            for step in write_texts(model, min(WRITTEN_TOKENS, read_text(path).max_length)):
                context.report(step, "measuring outliers")
        np.savez(out / OUTLIERS_FILE, **{name: values.numpy() for name, values in found.items()})
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


def write_texts(model: PreTrainedModel, tokens: int) -> Iterator[float]:
    """Have a language model write texts of so many tokens, drawn from what it expects; tells how far it is.

    Raises:
        CheckpointError: what it expects is no number.

    Source of the idea: Z. Liu and others, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models" (2023), section 2.1.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    beginning = model.config.bos_token_id
    given = torch.full((WRITTEN_TEXTS, 1), 0 if beginning is None else beginning)
    cache = None
    with torch.inference_mode():
        for number in range(tokens):
            said = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = said.past_key_values
            if not said.logits.isfinite().all():
                raise CheckpointError("The model answers NaN or infinity.", why=f"so it does for token {number + 1} of a text that it writes itself",
                                      hint="get the checkpoint again, or look for what spoiled its weights")
            given = torch.multinomial(said.logits[:, -1].softmax(dim=-1), 1, generator=generator)
            yield (number + 1) / tokens


def read_outliers(inputs: Mapping[str, View], policy: Policy) -> dict[str, np.ndarray]:
    """What was measured of the layers that a policy makes static; nothing where a step has no measurement among its inputs."""
    import numpy as np

    if "outliers" not in inputs:
        return {}
    matcher = Matcher(policy)
    with np.load(inputs["outliers"].path / OUTLIERS_FILE, allow_pickle=False) as data:
        return {name: values for name, values in data.items() if matcher.scheme("", {name})[0] == "static"}

"""A base model with an adapter (LoRA and its relatives) merged into it: from here on an ordinary checkpoint, and the original of all lanes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.errors import CheckpointError
from edgeexport.step import Context, Refusal, Step, View

from ._own_code import brings_code
from ._pruned_model import pruned_spec, save_model
from .load_checkpoint import take_files, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
NAME = "default"  # what PEFT calls an adapter that nobody named
VECTORS = frozenset({Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY})
OTHER_BASE = "name the base model that it was trained on below [model] in the recipe: base = \"…\""


class MergeAdapter(Step):
    """Put an adapter's changes into its base model's weights.

    Attributes:
        spec: what the small files of both say of the merged model.
        text: its text spec; the id of the mask token is added here.
        head: the task that the adapter was trained for.
        labels: the classes of the head, in the order of its logits.
        taken: the adapter's files that belong to the merged model → their names there.
        dropped: the base model's files whose place they take.
    """

    name: ClassVar[str] = "merge_adapter"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "adapter": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum", "peft", "tokenizers")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 12.0

    spec: Spec
    text: dict[str, Any]
    head: Task
    labels: tuple[str, ...] = ()
    taken: dict[str, str] = {}
    dropped: tuple[str, ...] = ()

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the small files already."""
        return self.spec

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Merge with PEFT, in float32."""
        import torch

        torch.set_num_threads(context.threads)
        torch.manual_seed(context.seed)  # some methods begin from matrices that they do not store
        # PEFT reads a directory: a copy whose digests were checked.
        adapter = context.scratch / "adapter"
        take_files(inputs["adapter"], adapter, context)
        context.report(None, "loading the base model")
        model = self._base(inputs["checkpoint"].path, adapter)
        context.report(None, "merging")
        model = merged(model, adapter)
        save_model(model, inputs["checkpoint"].path, out)
        for name in self.dropped:
            (out / name).unlink(missing_ok=True)
        for name, there in self.taken.items():
            (out / there).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter / name, out / there)
        write_text(out, self.text, self.spec, context)
        return pruned_spec(model, self.spec, out)

    def _base(self, directory: Path, adapter: Path) -> PreTrainedModel:
        """The base model with the head that the adapter was trained with; what it lacks of that, the adapter brings.

        Raises:
            CheckpointError: Transformers can't load it, or neither of them has a weight.
        """
        import torch
        import transformers
        from optimum.exporters.tasks import TasksManager
        from safetensors import safe_open

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        trusted = brings_code(directory)
        model_class = TasksManager.get_model_class_for_task(TasksManager.map_from_synonym(self.head.value), framework="pt")
        try:
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=trusted)
            if self.labels:
                config.id2label = dict(enumerate(self.labels))
                config.label2id = {label: number for number, label in enumerate(self.labels)}
            model, info = model_class.from_pretrained(
                directory, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=trusted, output_loading_info=True,
                ignore_mismatched_sizes=True)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as exc:
            raise CheckpointError("Transformers cannot load the base model.", why=str(exc).splitlines()[0]) from exc
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
            brought = {name.removeprefix(PREFIX) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        random = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])} - brought
        if self.head in VECTORS and any(name.startswith("pooler.") for name in random):
            # Its output is not used, and nobody should take random weights for a model's.
            model.pooler = None
            random = {name for name in random if not name.startswith("pooler.")}
        if random:
            raise CheckpointError("Weights are missing from the base model and the adapter.", why=shown(sorted(random)),
                                  hint="the model would answer from random weights; " + OTHER_BASE)
        return model.eval()  # type: ignore[no-any-return]


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with an adapter in its weights.

    Args:
        model: the base model; it is changed.
        adapter: a directory in PEFT's layout.

    Raises:
        CheckpointError: the adapter is for another model, or of a method that PEFT can't merge.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import ModulesToSaveWrapper
    from safetensors.torch import load_file

    other = "The adapter does not fit the base model."
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        targets = getattr(config, "target_modules", None)
        names = [f".{name}" for name, _ in model.named_modules()]
        if targets and not isinstance(targets, str) and not any(name.endswith(tuple(f".{target}" for target in targets)) for name in names):
            raise CheckpointError(other, why=f"the base model has no module {' or '.join(sorted(targets))}", hint=OTHER_BASE)
        made = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as exc:
        raise CheckpointError(other, why=str(exc).splitlines()[0], hint=OTHER_BASE) from exc
    stored = {name: tuple(value.shape) for name, value in load_file(adapter / ADAPTER_WEIGHTS).items()}
    wanted = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(made, save_embedding_layers=False).items()}
    wrong = next((name for name in stored if name in wanted and stored[name] != wanted[name]), None)
    if wrong is not None:
        raise CheckpointError(other, why=f"{wrong.removeprefix(PREFIX)} is {list(stored[wrong])} in the adapter, and would have to be "
                              f"{list(wanted[wrong])}", hint=OTHER_BASE)
    missing = [name for name in wanted if name not in stored]
    if missing and not stored.keys() - wanted.keys():
        raise CheckpointError("Weights are missing from the adapter.", why=shown(missing), hint="get the whole adapter")
    try:
        result = made.load_adapter(str(adapter), NAME)
        # With bias="all" PEFT stores the head's twice, and knows one of the two names.
        strange, lost = [name for name in result.unexpected_keys if name not in wanted], result.missing_keys
    except (KeyError, RuntimeError, ValueError) as exc:
        strange, lost = sorted(stored.keys() - wanted.keys()), missing or [str(exc)]
    if strange or lost:
        why = f"the base model has no {shown(strange)}" if strange else f"the adapter has no {shown(lost)}"
        raise CheckpointError(other, why=why, hint=OTHER_BASE)
    try:
        whole: PreTrainedModel = made.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, ValueError, RuntimeError) as exc:
        raise CheckpointError(f"An adapter of the method {config.peft_type.value} cannot be merged into this model.",
                              why=str(exc).splitlines()[0] if str(exc) else type(exc).__name__) from exc
    # Of the tuning of layer norms PEFT leaves the saved head in its wrapper.
    for name, module in [(name, module) for name, module in whole.named_modules() if isinstance(module, ModulesToSaveWrapper)]:
        whole.set_submodule(name, module.modules_to_save[NAME])
    return whole


def shown(names: Iterable[str]) -> str:
    """The first of some weights' names, and how many more there are."""
    found = [name.removeprefix(PREFIX) for name in names]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

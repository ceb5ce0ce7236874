"""A language model as a float32 ONNX graph with a KV cache, by onnxruntime-genai's builder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import StepFailed
from edgeexport.step import Context, Refusal, Step, View

from ._onnx_external import MODEL, ExternalReader, ExternalWriter, copy_constants
from ._task_model import read_config, read_text

if TYPE_CHECKING:
    import onnx

GENAI_CONFIG = "genai_config.json"
# Architectures for which the builder makes a graph that agrees with the original.
BUILT = frozenset({"gemma2", "gemma3_text", "llama", "phi3", "qwen2", "qwen3"})
CACHE = re.compile(r"(past_key_values|present)\.\d+\.(key|value)")


class ExportDecoderOnnx(Step):
    """Export for onnxruntime and onnxruntime-genai.

    The graph gives logits for the last token alone, and attention is GroupQueryAttention, which writes into the buffers it reads.
    """

    name: ClassVar[str] = "export_decoder_onnx"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxruntime-genai")
    extra: ClassVar[str | None] = "onnx"
    seconds_guess: ClassVar[float] = 30.0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A float32 graph of about the size of the weights."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.architecture not in BUILT:
            return Refusal(reason=f"there is no ONNX export with a KV cache for {checkpoint.architecture}",
                           hint=f"there is one for {', '.join(sorted(BUILT))}")
        return Spec(kind=Kind.ONNX, task=checkpoint.task, architecture=checkpoint.architecture, precision="float32",
                    parameters=checkpoint.parameters, bytes=4 * (checkpoint.parameters or 0))

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Have the graph built, and make it tidy."""
        path, spec = inputs["checkpoint"]
        context.report(None, "building the graph")
        built = context.scratch / "built"
        shutil.rmtree(built, ignore_errors=True)
        build_graph(path, built, context)
        context.report(None, "writing")
        tidy(built, out, read_config(path), read_text(path).max_length)
        shutil.rmtree(built)
        return self.infer({"checkpoint": spec})  # type: ignore[return-value]


def build_graph(checkpoint: Path, out: Path, context: Context) -> None:
    """Run the builder in a process of its own: it is a script, with modules that are found by their place.

    Raises:
        StepFailed: it failed; with its last words.
    """
    words = context.scratch / "builder.txt"
    with words.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out), "-p", "fp32", "-e", "cpu",
             "-c", str(context.scratch / "cache"), "--extra_options", "prune_lm_head=true", "windowed_kv_cache=false", "hf_remote=false"],
            stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise StepFailed("onnxruntime-genai's builder failed.", why=" / ".join(lines[-2:]) or None)


def tidy(built: Path, out: Path, config: Mapping[str, Any], context: int) -> None:
    """Write the graph with names of nodes by their modules, the real shapes of the cache, and without the builder's notes.

    Args:
        built: what the builder wrote.
        out: the folder to write to.
        config: the checkpoint's config.json.
        context: the tokens that are held at once.
    """
    import onnx

    model = onnx.load(built / MODEL, load_external_data=False)
    for node in model.graph.node:
        module, _, operator = node.name.strip("/").rpartition("/")
        node.name = f"{module.removeprefix('model/').replace('/', '.')}/{operator}"
        node.doc_string = ""
        del node.metadata_props[:]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for value in (*model.graph.input, *model.graph.output):
        if CACHE.fullmatch(value.name):
            value.type.tensor_type.shape.dim[3].dim_value = width
    del model.graph.value_info[:]  # shapes; a runtime infers them
    del model.metadata_props[:]
    with ExternalWriter(out) as writer:
        copy_constants(model, ExternalReader(built), writer)
        writer.save(model)
    settings = json.loads((built / GENAI_CONFIG).read_text(encoding="utf-8"))
    settings["model"]["context_length"] = settings["search"]["max_length"] = context
    (out / GENAI_CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")

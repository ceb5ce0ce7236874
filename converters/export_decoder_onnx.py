"""A language model as a float32 ONNX graph with a KV cache.

By onnxruntime-genai's builder where it knows the architecture; elsewhere by PyTorch's exporter, with the same inputs and outputs and the same
attention (:mod:`._onnx_cache`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import StepFailed
from edgeexport.session.generation import GENERATION_FILE, read_generation_spec
from edgeexport.step import Context, Refusal, Step, View

from ._cached_decoder import cache_shape, load_decoder
from ._onnx_cache import OnnxCache, trace
from ._onnx_external import MODEL, ExternalReader, ExternalWriter, copy_constants
from ._task_model import read_config, read_text
from .export_onnx import name_nodes_by_module

GENAI_CONFIG = "genai_config.json"
# Architectures for which the builder makes a graph that agrees with the original.
BUILT = frozenset({"gemma2", "llama", "phi3", "qwen2", "qwen3"})
CACHE = re.compile(r"(past_key_values|present)\.\d+\.(key|value)")


class ExportDecoderOnnx(Step):
    """Export for onnxruntime and onnxruntime-genai.

    The graph gives logits for the last token alone, and attention is GroupQueryAttention, which writes into the buffers it reads.

    Attributes:
        opset: version of the ONNX operator set, where PyTorch exports; the builder has its own.
    """

    name: ClassVar[str] = "export_decoder_onnx"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxruntime-genai")
    extra: ClassVar[str | None] = "onnx"
    seconds_guess: ClassVar[float] = 30.0

    opset: int = 21

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A float32 graph of about the size of the weights."""
        checkpoint = inputs["checkpoint"]
        return Spec(kind=Kind.ONNX, task=checkpoint.task, architecture=checkpoint.architecture, precision="float32",
                    parameters=checkpoint.parameters, bytes=4 * (checkpoint.parameters or 0))

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Have the graph built, and make it tidy."""
        path, spec = inputs["checkpoint"]
        held = read_text(path).max_length
        if spec.architecture in BUILT:
            context.report(None, "building the graph")
            built = context.scratch / "built"
            shutil.rmtree(built, ignore_errors=True)
            build_graph(path, built, context)
            context.report(None, "writing")
            settings = tidy(built, out, read_config(path))
            shutil.rmtree(built)
        else:
            settings = self._trace(path, out, held, context)
        stops = read_generation_spec(path / GENERATION_FILE).stop_ids
        # onnxruntime-genai takes no null; of a single text neither is used.
        settings["model"] |= {name: stops[0] for name in ("bos_token_id", "pad_token_id") if settings["model"].get(name) is None}
        settings["model"] |= {"context_length": held, "eos_token_id": stops[0] if len(stops) == 1 else list(stops)}
        settings["search"]["max_length"] = held
        (out / GENAI_CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
        return self.infer({"checkpoint": spec})  # type: ignore[return-value]

    def _trace(self, path: Path, out: Path, held: int, context: Context) -> dict[str, Any]:
        """Have PyTorch export the model; what onnxruntime-genai needs to know of it."""
        import torch

        torch.set_num_threads(context.threads)
        context.report(None, "loading the model")
        kept = OnnxCache()
        model = load_decoder(path, kept, held)
        context.report(None, "tracing")
        graph = trace(model, kept, self.opset)
        name_nodes_by_module(graph)
        context.report(None, "writing")
        settings = genai_settings(model.config)
        del model
        with ExternalWriter(out) as writer:
            copy_constants(graph, ExternalReader(out), writer)
            writer.save(graph)
        return settings


def build_graph(checkpoint: Path, out: Path, context: Context) -> None:
    """Run the builder in a process of its own: it is a script, with modules that are found by their place.

    Raises:
        OSError: the disk is full.
        StepFailed: it failed otherwise; with its last words.
    """
    # What it says does not go into a file: on a full disk that would end before the reason.
    done = subprocess.run(
        [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out), "-p", "fp32", "-e", "cpu",
         "-c", str(context.scratch / "cache"), "--extra_options", "prune_lm_head=true", "windowed_kv_cache=false", "hf_remote=false"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        if os.strerror(errno.ENOSPC) in done.stdout:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise StepFailed("onnxruntime-genai's builder failed.", why=" / ".join(done.stdout.strip().splitlines()[-2:]) or None)


def tidy(built: Path, out: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write the graph with names of nodes by their modules, the real shapes of the cache, and without the builder's notes.

    Args:
        built: what the builder wrote.
        out: the folder to write to.
        config: the checkpoint's config.json.

    Returns:
        What the builder says of it for onnxruntime-genai.
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
    settings: dict[str, Any] = json.loads((built / GENAI_CONFIG).read_text(encoding="utf-8"))
    return settings


def genai_settings(config: Any) -> dict[str, Any]:
    """What onnxruntime-genai needs to know of a graph that its builder did not make; of the families that it can tell apart, one without
    anything of its own.

    Source: the reference of genai_config.json in onnxruntime-genai's documentation.
    """
    shape = cache_shape(config)
    return {
        "model": {
            "type": "llama", "vocab_size": config.vocab_size, "bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []}, "filename": MODEL, "head_size": shape.width,
                "hidden_size": config.hidden_size, "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids",
                           "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}}},
        "search": {"past_present_share_buffer": True}}

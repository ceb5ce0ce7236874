"""Language models side by side: our lanes, and llama.cpp, onnxruntime-genai and LiteRT-LM as their own tools make and run them.

    .venv/bin/python scripts/benchmarks/generative.py prepare CHECKPOINT --work build/generative
    .venv/bin/python scripts/benchmarks/generative.py run --work build/generative --bundle BUNDLE [--threads 1 --threads 2]

`prepare` makes what the others run: a Q8_0 GGUF file, onnxruntime-genai's own int8 build, LiteRT's own export, and an environment with the runtimes
that the product does not need. `run` has every engine in a process of its own, all loaded, and goes through them in turn, ROUNDS times: a prompt of
128 tokens is read and 32 are written. It prints medians and, for the ratio to llama.cpp, the range over the rounds.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PROMPT, ANSWER, ROUNDS = 128, 32, 7
PEERS = ("click==8.5.1", "numpy==2.4.6", "xllamacpp==2026.10.11549", "litert-lm-api==0.18.1")
CONTEXT = 1024


# -- what the others make

def write_gguf(checkpoint: Path, path: Path) -> None:
    """A checkpoint of Llama's family as llama.cpp's converter packs it, in Q8_0."""
    import gguf
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config, tokenizer = model.config, Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    vocabulary = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if number in special else 1 for number in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight":
            continue  # tied
        place = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name)
        if place is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            place = f"blk.{layer}.{parts[part]}.weight"
            if part.endswith(("q_proj", "k_proj")):  # llama.cpp rotates neighbours, Transformers halves
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(place, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()


def build_genai(checkpoint: Path, out: Path) -> None:
    """onnxruntime-genai's own build."""
    subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out), "-p", "int8", "-e", "cpu",
                    "-c", str(out / "cache")], check=True, stdout=subprocess.DEVNULL)


def build_litert(checkpoint: Path, out: Path) -> None:
    """LiteRT's own export."""
    from litert_torch.generative.export_hf import export

    export.export(model=str(checkpoint), output_dir=str(out), prefill_lengths=[PROMPT], cache_length=CONTEXT,
                  quantization_recipe="dynamic_wi8_afp32")


def make_peers(work: Path) -> Path:
    """The Python of an environment with the other runtimes."""
    python = work / "peers" / "bin" / "python"
    if not python.exists():
        venv.create(work / "peers", with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


# -- engines: each is a function that reads a prompt and writes an answer, and returns seconds to the first token and seconds a token

def ours(place: str, threads: int) -> Callable[[], tuple[float, float]]:
    """A lane of a bundle."""
    from edgeexport.session import Bundle

    bundle, lane = place.rsplit("@", 1)
    return by_decoder(Bundle.open(bundle, lane=lane, threads=threads).session.decoder)


def genai(place: str, threads: int) -> Callable[[], tuple[float, float]]:
    """A folder that onnxruntime-genai's builder made."""
    from edgeexport.session.run_genai_decoder import GenaiDecoder

    return by_decoder(GenaiDecoder(Path(place) / "model.onnx", threads, CONTEXT))


def by_decoder(decoder: Any) -> Callable[[], tuple[float, float]]:
    """Greedy text by a decoder of a session."""
    import numpy as np

    prompt = np.arange(100, 100 + PROMPT)

    def once() -> tuple[float, float]:
        decoder.rewind(0)
        started = time.perf_counter()
        token = decoder.read(prompt).argmax().reshape(1)
        first = time.perf_counter()
        for _ in range(ANSWER):
            token = decoder.read(token).argmax().reshape(1)
        return first - started, (time.perf_counter() - first) / ANSWER

    return once


def llama_cpp(place: str, threads: int) -> Callable[[], tuple[float, float]]:
    """A GGUF file; seconds are llama.cpp's own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = place
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = CONTEXT, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    number = 0

    def once() -> tuple[float, float]:
        nonlocal number
        number += 1
        request = {"prompt": list(range(100 + number, 100 + number + PROMPT)), "n_predict": ANSWER, "temperature": 0, "cache_prompt": False,
                   "ignore_eos": True}
        found = server.handle_completions(request)
        timings = (json.loads(found) if isinstance(found, str) else found)["timings"]
        assert timings["prompt_n"] == PROMPT, timings
        return timings["prompt_ms"] / 1000, timings["predicted_per_token_ms"] / 1000

    return once


def litert_lm(place: str, threads: int) -> Callable[[], tuple[float, float]]:
    """A .litertlm file; seconds are LiteRT-LM's own."""
    import litert_lm

    def once() -> tuple[float, float]:
        # Packed weights in memory: otherwise a file of them comes to lie in the bundle.
        found = litert_lm.Benchmark(model_path=place, backend=litert_lm.Backend.CPU(thread_count=threads), prefill_tokens=PROMPT,
                                    decode_tokens=ANSWER, max_num_tokens=CONTEXT, cache_dir=":memory").run()
        return PROMPT / found.last_prefill_tokens_per_second, 1 / found.last_decode_tokens_per_second

    return once


ENGINES = {"ours": ours, "genai": genai, "llama_cpp": llama_cpp, "litert_lm": litert_lm}


class Worker:
    """An engine in a process of its own."""

    def __init__(self, python: str, engine: str, place: str, threads: int) -> None:
        self._process = subprocess.Popen([python, __file__, "worker", engine, place, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)
        self._answer()

    def once(self) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        first, token = self._answer()
        return first, token

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit("an engine died")

    def end(self) -> None:
        self._process.kill()


@click.group()
def main() -> None:
    """See above."""


@main.command()
@click.argument("engine", type=click.Choice(list(ENGINES)))
@click.argument("place")
@click.argument("threads", type=int)
def worker(engine: str, place: str, threads: int) -> None:
    """Answer each line of standard input by a line of seconds."""
    out = os.fdopen(os.dup(1), "w")  # runtimes write on standard output too
    os.dup2(2, 1)
    once = ENGINES[engine](place, threads)
    once()
    print("@null", file=out, flush=True)
    for _ in sys.stdin:
        print("@" + json.dumps(once()), file=out, flush=True)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), required=True)
def prepare(checkpoint: Path, work: Path) -> None:
    """Make what the others run."""
    work.mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, Callable[[], object]]] = [
        ("q8_0.gguf", lambda: write_gguf(checkpoint, work / "q8_0.gguf")), ("genai", lambda: build_genai(checkpoint, work / "genai")),
        ("litert", lambda: build_litert(checkpoint, work / "litert"))]
    for name, make in made:
        if not (work / name).exists():
            started = time.perf_counter()
            make()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    make_peers(work)
    shutil.rmtree(work / "genai" / "cache", ignore_errors=True)


@main.command()
@click.option("--work", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2))
@click.option("--rounds", type=int, default=ROUNDS)
def run(work: Path, bundle: Path, threads: tuple[int, ...], rounds: int) -> None:
    """Print the table."""
    peers = str(make_peers(work))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    engines = {f"edgeexport, {name}": (sys.executable, "ours", f"{bundle}@{name}") if lane["format"] != "litertlm" else
               (peers, "litert_lm", str(bundle / manifest["variants"][lane["variant"]]["model"])) for name, lane in manifest["lanes"].items()}
    engines |= {"onnxruntime-genai, bare": (sys.executable, "genai", str(work / "genai")),
                "LiteRT-LM, bare": (peers, "litert_lm", str(work / "litert" / "model.litertlm")),
                "llama.cpp Q8_0": (peers, "llama_cpp", str(work / "q8_0.gguf"))}
    for count in threads:
        found = time_all(engines, count, rounds)
        base = found["llama.cpp Q8_0"]
        print(f"\n{count} thread{'s' if count > 1 else ''}, medians of {rounds} rounds; ratios to llama.cpp with their range")
        print(f"{'':32} {'first of ' + str(PROMPT):>13} {'prefill tok/s':>24} {'decode tok/s':>24}")
        for name, times in found.items():
            columns = []
            for which, tokens in ((0, PROMPT), (1, 1)):
                ratios = [b[which] / a[which] for a, b in zip(times, base, strict=True)]
                speed = tokens / statistics.median(each[which] for each in times)
                columns.append(f"{speed:7.1f} {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]")
            first = statistics.median(each[0] for each in times)
            print(f"{name:32} {1000 * first:10.0f} ms {columns[0]:>24} {columns[1]:>24}", flush=True)


def time_all(engines: dict[str, tuple[str, str, str]], threads: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds to the first token and a token, of every engine in every round."""
    workers = {name: Worker(*engine, threads) for name, engine in engines.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, each in workers.items():
            found[name].append(each.once())
    for each in workers.values():
        each.end()
    return found


if __name__ == "__main__":
    main()

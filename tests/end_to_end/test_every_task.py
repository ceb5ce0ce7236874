"""A build for every task, from a checkpoint to an answer of the bundle, on a board of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from boards import BOARD
from command_line import Cli
from tiny import Case, write_checkpoint

from edgeexport.artifact import Task


@pytest.mark.parametrize(("case", "arguments", "keys"), [
    (Case("bert", Task.QUESTION_ANSWERING, layers=1), ["who?", "--context", "A man came in."], ["score", "start", "end", "answer"]),
    (Case("bert", Task.TOKEN_CLASSIFICATION, layers=1), ["Rain in the north"], ["entity_group", "score", "word", "start", "end"]),
    (Case("roberta", Task.FILL_MASK, layers=1), ["the <mask> is here"], ["score", "token", "token_str", "sequence"]),
    (Case("distilbert", Task.FEATURE_EXTRACTION, layers=1), ["a text"], None),
], ids=str)
def test_from_a_checkpoint_to_an_answer(cli: Cli, tmp_path: Path, case: Case, arguments: list[str], keys: list[str] | None) -> None:
    model = write_checkpoint(tmp_path / "my model", case)
    (cli.directory / "board.toml").write_text(BOARD, encoding="utf-8")
    built = cli("build", str(model), "--target", "./board.toml", "--json")
    assert built.code in {0, 1, 3}, built.err  # random weights prove nothing but the way
    (bundle,) = built.json["bundles"]
    (lane,) = bundle["report"]["lanes"]
    assert bundle["report"]["model"]["task"] == case.task
    assert lane["speed"]["latency_ms"].keys() == {"16", "32"}
    assert "finite numbers" not in str(lane["checks"])

    ran = cli("run", bundle["directory"], *arguments, "--json")
    assert ran.code == 0, ran.err
    answer: Any = ran.json["results"][0]["answer"]
    if keys is None:
        assert len(answer) > 2 and len(answer[0]) == 32  # a vector for each token
    else:
        assert set(answer if isinstance(answer, dict) else answer[0]) == set(keys) if answer else case.task is Task.TOKEN_CLASSIFICATION

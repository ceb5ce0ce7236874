"""Fewer tokens for a language model: those that stay are as likely as before, every text is still read, and nothing points to an old id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeexport.converters._task_model import load_model
from tiny import TEXTS
from tiny_decoders import END, FAMILIES, START, TEMPLATE, byte_level, write_decoder
from tokenizers import AddedToken, Tokenizer
from zoo import Zoo, as_rows

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.errors import RecipeError
from edgeexport.recipe import ModelSection
from edgeexport.session.chat import ChatTemplate
from edgeexport.session.generation import read_generation_spec
from edgeexport.step import View

SIZE = 380
LAST = "<|last|>"


def trimmed(zoo: Zoo, checkpoint: View, size: int = SIZE) -> View:
    texts = zoo.dataset("texts", as_rows(TEXTS[:40]))
    return zoo.run(find_step("trim_vocabulary")(size=size, datasets=("texts",)), {"checkpoint": checkpoint, "texts": texts})


def tokenizer(view: View) -> Tokenizer:
    return Tokenizer.from_file(str(view.path / "tokenizer.json"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stays_is_as_likely_as_before(zoo: Zoo, family: str) -> None:
    before = zoo.load(write_decoder(zoo.place(family) / "checkpoint", family), ModelSection(source="m"))
    after = trimmed(zoo, before)
    old, new = tokenizer(before), tokenizer(after)
    kept = [number for number in range(old.get_vocab_size()) if new.token_to_id(old.id_to_token(number)) is not None]
    assert len(kept) == new.get_vocab_size() == SIZE
    assert after.spec.facts["vocabulary"] == SIZE and after.spec.parameters < before.spec.parameters
    ids = np.random.default_rng(0).choice(kept, (2, 40))
    renumbered = np.array([[new.token_to_id(old.id_to_token(number)) for number in row] for row in ids.tolist()])
    one, other = (load_model(view.path, Task.TEXT_GENERATION) for view in (before, after))
    with torch.inference_mode():
        wanted = one(input_ids=torch.from_numpy(ids)).logits[..., kept]
        found = other(input_ids=torch.from_numpy(renumbered)).logits
    assert torch.equal(found, wanted)
    assert other.config.tie_word_embeddings == one.config.tie_word_embeddings


def test_every_text_is_still_read_and_cut_into_smaller_pieces(zoo: Zoo) -> None:
    before = zoo.load(write_decoder(zoo.place("read") / "checkpoint", "llama"), ModelSection(source="m"))
    after = trimmed(zoo, before)
    for text in [*TEXTS, "  é 島 𓀀\n\n", START + "user"]:
        ids = tokenizer(after).encode(text).ids
        assert tokenizer(after).decode(ids, skip_special_tokens=False) == text
        assert len(ids) >= len(tokenizer(before).encode(text).ids)


def last_stops(directory: Path) -> Path:
    """As Qwen's: what ends a text is the last token of all, and not the only one that does."""
    made = byte_level().__class__.from_str(byte_level().to_str())
    made.add_special_tokens([AddedToken(LAST, normalized=False, special=True)])
    stops = [made.token_to_id(END), made.token_to_id(LAST)]
    write_decoder(directory, "qwen2", vocab_size=made.get_vocab_size() + 8, eos_token_id=stops)
    made.save(str(directory / "tokenizer.json"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": LAST}))
    return directory


def test_what_ends_a_text_is_numbered_anew(zoo: Zoo) -> None:
    before = zoo.load(last_stops(zoo.place("last") / "checkpoint"), ModelSection(source="m"))
    after = trimmed(zoo, before)
    stops = [tokenizer(after).token_to_id(END), tokenizer(after).token_to_id(LAST)]
    assert stops[1] == SIZE - 1 != tokenizer(before).token_to_id(LAST)
    old, new = (read_generation_spec(view.path / "generation.json") for view in (before, after))
    assert new.stop_ids == tuple(stops) and new.chat_template == old.chat_template and new.tokens == old.tokens
    assert new.sources == {key.replace("512", str(SIZE - 1)): where for key, where in old.sources.items()}
    for name in ("config.json", "generation_config.json"):
        assert json.loads((after.path / name).read_text())["eos_token_id"] == stops
    # Rows that no token had are gone.
    assert len(load_model(after.path, Task.TEXT_GENERATION).get_input_embeddings().weight) == SIZE


def test_what_the_template_writes_stays_in_the_tokens_that_the_model_knows(zoo: Zoo) -> None:
    before = zoo.load(write_decoder(zoo.place("template") / "checkpoint", "llama"), ModelSection(source="m"))
    spec = read_generation_spec(before.path / "generation.json")
    said = ChatTemplate(TEMPLATE, spec.tokens).render([{"role": "user", "content": "a"}])
    tokens = tokenizer(before).encode(said, add_special_tokens=False).tokens
    assert any(len(token) > 3 for token in tokens if token not in {START, END})
    with pytest.raises(RecipeError, match="too small") as raised:
        trimmed(zoo, before, 20)
    smallest = int(str(raised.value.hint).split()[-1])
    after = trimmed(zoo, before, smallest)
    assert tokenizer(after).encode(said, add_special_tokens=False).tokens == tokens

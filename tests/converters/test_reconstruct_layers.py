"""Layers fitted to what the original hands on: the least-squares solution, in every architecture, also where layers are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed import data_for, measured, model_of, weights_of
from edgeexport.converters._architecture import ARCHITECTURES
from edgeexport.converters._examples import collate, read_examples
from edgeexport.converters._objective import Objective
from edgeexport.converters._task_model import load_model, read_text
from edgeexport.converters.reconstruct_layers import HELD_OUT, RIDGE, Additions, Targets, counterparts, read_texts
from test_prune_channels import CASES, CLASSIFIER
from tiny import Case
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.errors import StepFailed
from edgeexport.step import Refusal, View


def narrowed(zoo: Zoo, case: Case) -> View:
    """A case with half of its neurons, and of its heads where these can go."""
    shares = {"neurons": 0.5} | ({"heads": 0.5} if ARCHITECTURES[case.architecture].heads else {})
    whole = zoo.loaded(case)
    return zoo.run(find_step("prune_channels")(**shares), {"checkpoint": whole, "importance": measured(zoo, whole)})


def without_layers(zoo: Zoo, checkpoint: View, gone: list[int]) -> View:
    order = zoo.place("order")
    (order / "layers.json").write_text(json.dumps({"order": gone, "distance": [0.0] * len(gone)}))
    return zoo.run(find_step("drop_layers")(layers=3 - len(gone)), {"checkpoint": checkpoint, "order": View(order, Spec(kind=Kind.EVIDENCE))})


def reconstructed(zoo: Zoo, case: Case, checkpoint: View, training: View, **options: Any) -> View:
    inputs = {"checkpoint": checkpoint, "original": zoo.loaded(case), "training": training}
    return zoo.run(find_step("reconstruct_layers")(**options), inputs)


def hidden_states(view: View, training: View) -> list[np.ndarray]:
    """What Transformers says each layer hands on, float32 [tokens, width] of all texts that are read, one by one."""
    model, spec = model_of(view), read_text(view.path)
    found: list[list[np.ndarray]] = []
    with torch.no_grad():
        for example in read_examples(view, training.path):
            states = model(**collate([example], spec), output_hidden_states=True).hidden_states
            found.append([state[0].numpy() for state in states])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_narrow_model_hands_on_comes_nearer_to_the_original(zoo: Zoo, case: Case) -> None:
    training = data_for(zoo, case)
    narrow = narrowed(zoo, case)
    fitted = reconstructed(zoo, case, narrow, training)
    wanted, before, after = (hidden_states(view, training)[-1] for view in (zoo.loaded(case), narrow, fitted))
    assert error(after, wanted) < 0.7 * error(before, wanted)
    first, last = fitted.spec.facts["reconstruction"]
    assert 0 < last < first
    # Only what adds to the hidden states is another one now.
    changed = {name for name, tensor in weights_of(fitted).items() if not torch.equal(tensor, weights_of(narrow)[name])}
    assert changed and all(any(f".{addition.made_by}." in name for addition in ARCHITECTURES[case.architecture].additions) for name in changed)


def test_the_first_fit_is_the_ridge_regression(zoo: Zoo) -> None:
    """The first module that is fitted sees nothing that was fitted before, so that the solution can be had with Transformers alone."""
    training = data_for(zoo, CLASSIFIER)
    narrow = narrowed(zoo, CLASSIFIER)
    fitted = weights_of(reconstructed(zoo, CLASSIFIER, narrow, training))
    rows: dict[str, list[np.ndarray]] = {"read": [], "missing": []}

    def run(view: View) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        model = model_of(view)
        output, found = model.bert.encoder.layer[0].attention.output, []
        hook = output.register_forward_hook(lambda module, inputs, _: found.append(
            (inputs[0][0].numpy(), module.dense(inputs[0])[0].numpy(), inputs[1][0].numpy())))
        with torch.no_grad():
            for number, example in enumerate(read_examples(view, training.path)):
                if number % HELD_OUT:
                    model(**collate([example], read_text(view.path)))
        hook.remove()
        return found

    for (read, _, there), (_, added, before) in zip(run(narrow), run(zoo.loaded(CLASSIFIER)), strict=True):
        rows["read"].append(np.concatenate([read, np.ones((len(read), 1))], axis=1))
        rows["missing"].append(added + before - there)
    read, missing = (np.concatenate(rows[name]).astype(np.float64) for name in ("read", "missing"))
    name = "bert.encoder.layer.0.attention.output.dense"
    old = np.concatenate([weights_of(narrow)[f"{name}.weight"].numpy().T, weights_of(narrow)[f"{name}.bias"].numpy()[None]])
    ridge = RIDGE * np.mean(np.sum(read**2, axis=0))
    # The same as an ordinary least-squares problem: rows that hold the weights where they were.
    stacked = np.concatenate([read, np.sqrt(ridge) * np.eye(read.shape[1])])
    wanted, *_ = np.linalg.lstsq(stacked, np.concatenate([missing, np.sqrt(ridge) * old]), rcond=None)
    found = np.concatenate([fitted[f"{name}.weight"].numpy().T, fitted[f"{name}.bias"].numpy()[None]])
    assert np.abs(found - wanted).max() < 1e-3 < 0.1 < np.abs(wanted - old).max()


@pytest.mark.parametrize("gone", [[1], [2, 1], [0]], ids=str)
@pytest.mark.parametrize("case", [Case("bert", Task.TEXT_CLASSIFICATION, layers=3), Case("albert", Task.TEXT_CLASSIFICATION, layers=3),
                                  Case("mobilebert", Task.FILL_MASK, layers=3), Case("mpnet", Task.SENTENCE_SIMILARITY, layers=3)], ids=str)
def test_a_layer_stands_for_those_that_went_after_it(zoo: Zoo, case: Case, gone: list[int]) -> None:
    training = data_for(zoo, case)
    if case.architecture == "albert":
        gone = [2, 1][:len(gone)]  # of layers that share their weights, the last go
    short = without_layers(zoo, zoo.loaded(case), gone)
    fitted = reconstructed(zoo, case, short, training)
    wanted, before, after = (hidden_states(view, training)[-1] for view in (zoo.loaded(case), short, fitted))
    assert error(after, wanted) < error(before, wanted)


def test_a_fit_that_does_not_hold_for_other_texts_is_not_made(zoo: Zoo, tmp_path: Path) -> None:
    whole, narrow = zoo.loaded(CLASSIFIER), narrowed(zoo, CLASSIFIER)
    fitting, judging = read_texts(whole, data_for(zoo, CLASSIFIER).path, 500)
    objective = Objective(whole.spec, read_text(whole.path))
    own, other = (Additions(load_model(view.path, CLASSIFIER.task), objective, fitting[0]) for view in (whole, narrow))
    module, calls = own.order[0], range(len(own.order))
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    # As an exaggeration, texts to fit on that ask for another model than those which judge.
    asked, right = Targets(tmp_path / "asked", other, calls, fitting), Targets(tmp_path / "right", own, calls, judging)
    own.fit(module, asked, right)
    assert torch.equal(module.weight, weight) and torch.equal(module.bias, bias)
    own.fit(module, asked, Targets(tmp_path / "asked-too", other, calls, judging))
    assert not torch.equal(module.weight, weight)


def test_a_whole_model_stays_as_it_is(zoo: Zoo) -> None:
    training = data_for(zoo, CLASSIFIER)
    whole = zoo.loaded(CLASSIFIER)
    fitted = weights_of(reconstructed(zoo, CLASSIFIER, whole, training))
    for name, tensor in weights_of(whole).items():
        assert torch.allclose(fitted[name], tensor, atol=1e-4), name


@pytest.mark.parametrize(("own", "wanted", "layers", "kept", "found"), [
    (6, 6, 3, None, [0, 1, 2, 3, 4, 5]),
    (4, 8, 4, [0, 2], [0, 3, 4, 7]),        # the second addition of layer 0 stands for layer 1 too
    (4, 8, 4, [1, 2], [2, 3, 4, 7]),
    (2, 4, 4, [0, 3], [2, 3]),              # one addition a layer
    (3, 6, 2, [1], [3, 4, 5]),
])
def test_additions_have_their_counterparts(own: int, wanted: int, layers: int, kept: list[int] | None, found: list[int]) -> None:
    assert counterparts(own, wanted, layers, kept) == found


def test_the_number_of_texts_follows_the_tokens_that_were_asked_for(zoo: Zoo) -> None:
    training = data_for(zoo, CLASSIFIER)
    narrow = narrowed(zoo, CLASSIFIER)
    few, many = (reconstructed(zoo, CLASSIFIER, narrow, training, tokens=tokens) for tokens in (30, 100_000))
    wanted = hidden_states(zoo.loaded(CLASSIFIER), training)[-1]
    assert error(hidden_states(many, training)[-1], wanted) < error(hidden_states(few, training)[-1], wanted)


def test_numbers_that_are_none_are_said(zoo: Zoo) -> None:
    from safetensors.torch import load_file, save_file

    narrow = narrowed(zoo, CLASSIFIER)
    broken = zoo.place("broken")
    for path in narrow.path.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(narrow.path / "model.safetensors")
    tensors["bert.encoder.layer.1.intermediate.dense.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(StepFailed, match="no numbers"):
        reconstructed(zoo, CLASSIFIER, View(broken, narrow.spec), data_for(zoo, CLASSIFIER))


def test_an_architecture_that_is_not_described_is_refused() -> None:
    inferred = find_step("reconstruct_layers")().infer({"checkpoint": Spec(kind=Kind.CHECKPOINT, architecture="other")})
    assert isinstance(inferred, Refusal)

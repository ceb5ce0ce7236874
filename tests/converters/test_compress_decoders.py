"""Language models made smaller: each is the original with what was taken out silenced, and an ordinary checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from test_decoders import decoder
from tiny import TEXTS
from tiny_decoders import CONTEXT, FAMILIES, write_decoder
from zoo import Zoo

from edgeexport.artifact import Kind, Spec
from edgeexport.catalog import find_step
from edgeexport.dataset import Row
from edgeexport.recipe import ModelSection
from edgeexport.step import Refusal, View

LAYERS = 3
# Where each family keeps its layers, what writes a layer's neurons into the hidden states, and what configures their number.
PLACES = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"), ("layers", "mlp.down_proj", "intermediate_size")),
    "gpt2": ("h", "mlp.c_proj", "n_inner"),
    "gpt_neox": ("layers", "mlp.dense_4h_to_h", "intermediate_size"),
    "opt": ("decoder.layers", "fc2", "ffn_dim"),
    "bloom": ("h", "mlp.dense_4h_to_h", None),
}
WITH_HEADS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
ASKED = torch.from_numpy(np.random.default_rng(1).integers(3, 400, (2, 40)))


def checkpoint(zoo: Zoo, family: str) -> View:
    """A model of that family with a few layers; of windows and full attention where the family has both."""
    settings: dict[str, Any] = {"n_layer" if family in {"gpt2", "bloom"} else "num_hidden_layers": LAYERS}
    if family in {"gemma2", "gemma3_text"}:
        settings["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return zoo.load(write_decoder(zoo.place(family) / "checkpoint", family, **settings), ModelSection(source="m"))


def original(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(ASKED, use_cache=False).logits.numpy()  # type: ignore[no-any-return]


def layers_of(model: Any, family: str) -> Any:
    return model.base_model.get_submodule(PLACES[family][0])


def importance(zoo: Zoo, **arrays: np.ndarray) -> View:
    path = zoo.place("importance")
    np.savez(path / "channels.npz", **arrays)
    return View(path, Spec(kind=Kind.EVIDENCE))


def order_of(zoo: Zoo, *numbers: int) -> View:
    path = zoo.place("order")
    (path / "layers.json").write_text(json.dumps({"order": numbers}))
    return View(path, Spec(kind=Kind.EVIDENCE))


def texts(zoo: Zoo, count: int = 60) -> View:
    return zoo.dataset("training", [Row(id=str(number), text=text) for number, text in enumerate(TEXTS[40:40 + count])])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_neurons_it_is_the_model_in_which_they_are_silent(zoo: Zoo, family: str) -> None:
    source = checkpoint(zoo, family)
    model = original(source.path)
    _, reader, key = PLACES[family]
    random, silenced, values = np.random.default_rng(2), [], {}
    for number, layer in enumerate(layers_of(model, family)):
        module = layer.get_submodule(reader)
        by_input = module.weight if isinstance(module, transformers.pytorch_utils.Conv1D) else module.weight.T  # a view
        values[f"neurons-{number}"] = random.permutation(len(by_input)).astype(np.float32)
        gone = np.argsort(values[f"neurons-{number}"])[:len(by_input) // 2]
        silenced.append(gone)
        with torch.no_grad():
            by_input[gone] = 0
    pruned = zoo.run(find_step("prune_channels")(neurons=0.5), {"checkpoint": source, "importance": importance(zoo, **values)})
    if key is None:  # it has no configuration of its own
        assert json.loads((pruned.path / "config.json").read_text())["pruned_shapes"]
        from edgeexport.converters._task_model import load_model

        small: Any = load_model(pruned.path, source.spec.require_task())
    else:
        small = original(pruned.path)
        assert getattr(small.config, key) == len(silenced[0])
    expected = logits(model)
    assert np.abs(logits(small) - expected).max() < 1e-4 * expected.std()
    assert pruned.spec.parameters == sum(parameter.numel() for parameter in small.parameters()) < (source.spec.parameters or 0)


@pytest.mark.parametrize("family", WITH_HEADS)
def test_without_heads_it_is_the_model_in_which_they_are_silent(zoo: Zoo, family: str) -> None:
    source = checkpoint(zoo, family)
    model = original(source.path)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            weight = layer.self_attn.o_proj.weight
            half = weight.shape[1] // 2  # two groups, each of which shares a key
            weight[:, half * (number % 2):half * (number % 2 + 1)] = 0
    values = {f"heads-{number}": np.array([number % 2, 1 - number % 2], np.float32) for number in range(LAYERS)}
    pruned = zoo.run(find_step("prune_channels")(heads=0.5), {"checkpoint": source, "importance": importance(zoo, **values)})
    small = original(pruned.path)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
    expected = logits(model)
    assert np.abs(logits(small) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "gpt_neox", "phi3"])
def test_heads_that_fill_the_hidden_states_are_refused(zoo: Zoo, family: str) -> None:
    spec = checkpoint(zoo, family).spec
    found = find_step("prune_channels")(heads=0.5).infer({"checkpoint": spec, "importance": Spec(kind=Kind.EVIDENCE)})
    assert isinstance(found, Refusal)
    assert "hidden states" in found.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_layer_it_is_the_model_that_skips_it(zoo: Zoo, family: str) -> None:
    source = checkpoint(zoo, family)
    measured = zoo.run(find_step("measure_layers")(examples=8), {"checkpoint": source, "training": texts(zoo, 12)})
    order = json.loads((measured.path / "layers.json").read_text())["order"]
    model = original(source.path)
    layer = layers_of(model, family)[order[0]]
    plain = layer.forward

    def skip(hidden: torch.Tensor, *others: Any, **more: Any) -> Any:
        found = plain(hidden, *others, **more)
        return (hidden, *found[1:]) if isinstance(found, tuple) else hidden

    layer.forward = skip
    dropped = zoo.run(find_step("drop_layers")(layers=LAYERS - 1), {"checkpoint": source, "order": measured})
    small = original(dropped.path)
    expected = logits(model)
    assert np.abs(logits(small) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_distance_after_each_layer_is_that_of_the_model_without_it(zoo: Zoo, family: str) -> None:
    source, asked = checkpoint(zoo, family), TEXTS[40:46]
    data = zoo.dataset("training", [Row(id=str(number), text=text) for number, text in enumerate(asked)])
    found = json.loads((zoo.run(find_step("measure_layers")(), {"checkpoint": source, "training": data}).path / "layers.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(source.path / "tokenizer.json"))
    texts = [torch.tensor([tokenizer.encode(text).ids[:128]]) for text in asked]

    def distributions(numbers: list[int]) -> list[np.ndarray]:
        dropped = zoo.run(find_step("drop_layers")(layers=len(numbers)), {
            "checkpoint": source, "order": order_of(zoo, *(number for number in range(LAYERS) if number not in numbers))})
        model = original(dropped.path)
        with torch.inference_mode():
            return [model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1).numpy() for ids in texts]

    whole = original(source.path)
    with torch.inference_mode():
        wanted = [whole(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1).numpy() for ids in texts]
    for count, distance in enumerate(found["distance"], start=1):
        others = distributions([number for number in range(LAYERS) if number not in found["order"][:count]])
        each = []
        for ours, theirs in zip(np.concatenate(others), np.concatenate(wanted), strict=True):
            likely = np.argsort(-theirs)[:64]
            pairs = [(np.append(np.exp(values[likely]), max(1 - np.exp(values[likely]).sum(), 1e-6))) for values in (ours, theirs)]
            each.append((pairs[1] * np.log(pairs[1] / pairs[0])).sum())
        assert distance == pytest.approx(np.mean(each), rel=1e-3, abs=1e-7)
    fewer = zoo.run(find_step("measure_layers")(down_to=LAYERS - 1), {"checkpoint": source, "training": data}).path / "layers.json"
    assert json.loads(fewer.read_text()) == {name: values[:1] for name, values in found.items()}


def test_windows_stay_with_the_layers_that_have_them(zoo: Zoo) -> None:
    source = checkpoint(zoo, "gemma2")
    dropped = zoo.run(find_step("drop_layers")(layers=2), {"checkpoint": source, "order": order_of(zoo, 1, 0, 2)})  # between two layers with a window
    ids = np.random.default_rng(0).integers(3, 400, 100)
    with torch.inference_mode():
        expected = original(dropped.path)(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    exported = zoo.run(find_step("export_decoder_onnx")(), {"checkpoint": dropped})
    assert np.abs(decoder(exported).read(ids) - expected[-1]).max() < 1e-4 * expected.std()


def test_importance_is_the_gradient_of_what_the_model_says_of_the_next_tokens(zoo: Zoo) -> None:
    source = checkpoint(zoo, "llama")
    data = texts(zoo, 1)
    measured = zoo.run(find_step("measure_channels")(), {"checkpoint": source, "training": data})
    model = original(source.path)
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(source.path)(TEXTS[40])["input_ids"]])
    factors = [torch.ones(96, requires_grad=True) for _ in range(LAYERS)]
    for layer, factor in zip(model.model.layers, factors, strict=True):
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, given, factor=factor: (given[0] * factor,))
    said = model(ids, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(said, ids[0, 1:])
    with np.load(measured.path / "channels.npz") as found:
        for number, gradient in enumerate(torch.autograd.grad(loss, factors)):
            assert np.allclose(found[f"neurons-{number}"], gradient.numpy() ** 2, rtol=1e-3, atol=1e-12)
            assert sorted(found[f"neurons-{number}-order"].tolist()) == list(range(96))
        assert found["heads-0"].shape == (2,)


def test_the_distance_of_distributions_is_that_of_the_likeliest_tokens_and_the_rest(zoo: Zoo) -> None:
    from edgeexport.converters._objective import LIKELIEST, Objective
    from edgeexport.converters._task_model import read_text

    source = checkpoint(zoo, "llama")
    objective = Objective(source.spec, read_text(source.path))
    random = np.random.default_rng(0)
    p, q = (torch.from_numpy(3 * random.normal(size=(7, 300))).float() for _ in range(2))
    found = objective.distance(q, objective.kept(p)).item()
    expected = []
    for ours, theirs in zip(p.softmax(-1).double().numpy(), q.softmax(-1).double().numpy(), strict=True):
        best = np.argsort(-ours)[:LIKELIEST]
        pairs = [*zip(ours[best], theirs[best], strict=True), (1 - ours[best].sum(), 1 - theirs[best].sum())]
        expected.append(sum(a * math.log(a / b) for a, b in pairs))
    assert math.isclose(found, float(np.mean(expected)), rel_tol=1e-4)
    assert objective.distance(p, objective.kept(p)).item() < 1e-5


def test_a_pruned_model_learns_to_answer_as_the_original_and_is_exported(zoo: Zoo) -> None:
    source, data = checkpoint(zoo, "llama"), texts(zoo, 24)
    measured = zoo.run(find_step("measure_channels")(examples=8), {"checkpoint": source, "training": data})
    pruned = zoo.run(find_step("prune_channels")(heads=0.5, neurons=0.5), {"checkpoint": source, "importance": measured})
    teacher = zoo.run(find_step("compute_teacher")(hidden=()), {"checkpoint": source, "texts": data})
    taught = zoo.run(find_step("distill")(epochs=6, batch=4, learning_rate=3e-3), {
        "student": pruned, "teacher": teacher, "training": data, "development": data, "development_teacher": teacher})

    def distance(path: Path) -> float:
        p, q = (torch.from_numpy(logits(original(each))).log_softmax(-1) for each in (source.path, path))
        return torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item() / q.shape[0] / q.shape[1]

    history = [distance for _, distance in taught.spec.facts["training"]["history"]]
    assert history[-1] < 0.8 * history[0]
    assert distance(taught.path) < distance(pruned.path)
    # What is left goes on through both exporters like any checkpoint.
    ids = np.random.default_rng(0).integers(3, 400, CONTEXT // 2)
    model = original(taught.path)
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    for model_format, options in (("onnx", {}), ("tflite", {"lengths": (16,)})):
        exported = zoo.run(find_step(f"export_decoder_{model_format}")(**options), {"checkpoint": taught})
        assert np.abs(decoder(exported).read(ids) - expected[-1]).max() < 1e-4 * expected.std()


def test_a_model_whose_layers_differ_is_exported_by_its_own_shapes(zoo: Zoo) -> None:
    source = checkpoint(zoo, "bloom")
    random = np.random.default_rng(0)
    values = {f"neurons-{number}": random.random(256).astype(np.float32) + number for number in range(LAYERS)}
    pruned = zoo.run(find_step("prune_channels")(neurons=0.5), {"checkpoint": source, "importance": importance(zoo, **values)})
    shapes = [tensor.shape[1] for name, tensor in load_file(pruned.path / "model.safetensors").items() if name.endswith("dense_4h_to_h.weight")]
    assert len(set(shapes)) > 1
    from edgeexport.converters._task_model import load_model

    ids = np.random.default_rng(0).integers(3, 400, 40)
    with torch.inference_mode():
        expected = load_model(pruned.path, source.spec.require_task())(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    exported = zoo.run(find_step("export_decoder_onnx")(), {"checkpoint": pruned})
    assert np.abs(decoder(exported).read(ids) - expected[-1]).max() < 1e-4 * expected.std()

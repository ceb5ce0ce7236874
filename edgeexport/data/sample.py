"""Run this bundle. Needs Python 3.9 or newer, NumPy, tokenizers and one of the bundle's runtimes:

    pip install numpy tokenizers ai-edge-litert      (or onnxruntime, or tflite-runtime; for a language model that chats also jinja2)
    python sample.py "a text" ["a second text"]      (of a language model: "what a user says", and what another says)

The code that turns text into an answer is `session.pyz`, the very code that measured the figures in report.html.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "session.pyz"))

from edgeexport.errors import EdgeExportError
from edgeexport.session import Bundle


def main() -> None:
    """Answer the texts on the command line."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        bundle = Bundle.open(HERE)
        print(f"lane: {bundle.lane}")
        if bundle.payload.generation is not None:
            for text in sys.argv[1:]:
                for piece in bundle.generate(text, tokens=256):
                    print(piece, end="", flush=True)
                print()
            return
        answer = bundle.run(*sys.argv[1:3])
        # An embedder answers with an array: a vector, or one for each token.
        print(f"array of shape {answer.shape}, starting with {answer.ravel()[:4]}" if hasattr(answer, "shape") else answer)
    except EdgeExportError as exc:
        sys.exit(f"error: {exc}")


main()

"""How a variant of a payload is opened in a runtime, whatever it is for."""

from __future__ import annotations

from edgeexport.session.decoder_model import DecoderModel
from edgeexport.session.generation import Reader
from edgeexport.session.language_model import LanguageModel
from edgeexport.session.litert_lm_model import LitertLmModel
from edgeexport.session.payload import Payload, Session, loader
from edgeexport.session.run_litert_lm import LitertLm


def open_session(payload: Payload, variant: str, runtime: str, threads: int = 1) -> Session | LanguageModel:
    """A variant of a payload, loaded with a fixed number of threads.

    Raises:
        RuntimeUnavailable: the runtime is not installed here, or runs no such models.
        BundleError: what is in the file does not fit to the payload.
    """
    if payload.generation is None:
        return Session(payload, variant, runtime, threads)
    model = loader(runtime, generates=True)(payload.model_path(variant), threads, payload.spec.max_length)
    return LitertLmModel(payload, model) if isinstance(model, LitertLm) else DecoderModel(payload, Reader(model))

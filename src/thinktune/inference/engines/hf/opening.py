"""The registry entry of the transformers engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinktune.inference.engines.base import Engine

if TYPE_CHECKING:
    from thinktune.inference.engines.found_model import FoundModel


def open_transformers(model: FoundModel) -> Engine:
    """Load a model, and check the engine against the model's own forward pass.

    Raises:
        ModelError, DownloadError, DeviceError: see `models.load_model` and `fidelity.require_faithful`.
    """
    from thinktune.inference.engines.hf.fidelity import faithful_engine
    from thinktune.models import load_model

    how = model.settings
    loaded = load_model(model.reference, load=how.load, quantize=how.quantize, merge_adapter=how.merge)
    return faithful_engine(loaded, model.computation, max_batch_tokens=how.batch_tokens)


def why_not_transformers(model: FoundModel) -> str | None:
    """Say why it cannot run a model; None: it may."""
    return "it holds one adapter at a time" if model.adapters else None

"""Whether examples may share a sequence, and fit into the windows of a model's attention."""

from __future__ import annotations

from collections.abc import Sequence

from thinktune.config import Config
from thinktune.data import Tokens
from thinktune.errors import ModelError
from thinktune.models import Loaded
from thinktune.training.fused.packed_attention import require_within


def require_windows(loaded: Loaded, examples: Sequence[Tokens]) -> None:
    """Refuse examples that a sliding or chunked attention would not see as a whole.

    Raises:
        ModelError: an example is longer than the sliding window of some layer.
    """
    text = loaded.model.config.get_text_config()
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    require_within(getattr(text, "sliding_window", None) if slides else None, max(map(len, examples)))
    if "chunked_attention" in (getattr(text, "layer_types", None) or []):
        require_within(getattr(text, "attention_chunk_size", None), max(map(len, examples)))


def require_single_documents(config: Config) -> None:
    """Refuse packs and batches of several documents.

    Raises:
        ModelError: several documents are to share a sequence.
    """
    if config.train.packing or config.train.batch_size > 1:
        raise ModelError(
            "with this model, examples that share a sequence would see each other: "
            "its layers do not keep packed documents apart",
            hint="set train.packing=false train.batch_size=1, and train.accumulation to the rows a step should have",
        )

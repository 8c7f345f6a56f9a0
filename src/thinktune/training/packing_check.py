"""Whether examples may share a sequence."""

from __future__ import annotations

from thinktune.config import Config
from thinktune.errors import ModelError


def share_sequences(config: Config) -> bool:
    """Return whether several documents are to share a sequence, as the two of a pair always do."""
    return config.train.packing or config.train.batch_size > 1 or config.method == "dpo"


def require_single_documents(config: Config) -> None:
    """Refuse packs and batches of several documents.

    Raises:
        ModelError: several documents are to share a sequence.
    """
    if config.method == "dpo":
        raise ModelError("method: dpo needs a model whose layers keep packed documents apart, and this one's do not")
    if share_sequences(config):
        raise ModelError(
            "with this model, examples that share a sequence would see each other: "
            "its layers do not keep packed documents apart",
            hint="set train.packing=false train.batch_size=1, and train.accumulation to the rows a step should have",
        )

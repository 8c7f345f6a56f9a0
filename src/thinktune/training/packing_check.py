"""Whether examples may share a sequence."""

from __future__ import annotations

from thinktune.config import Config
from thinktune.errors import ModelError


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

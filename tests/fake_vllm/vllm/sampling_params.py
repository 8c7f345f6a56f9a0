"""See the package."""

from types import SimpleNamespace


class RequestOutputKind:
    DELTA = "delta"
    FINAL_ONLY = "final"


class SamplingParams(SimpleNamespace):
    def __init__(self, **values):
        super().__init__(**{"output_kind": RequestOutputKind.FINAL_ONLY, **values})

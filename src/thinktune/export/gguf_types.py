"""The number format of each tensor of a GGUF file, and weights in it.

The mixtures q4_k_m, q5_k_m and q6_k are llama.cpp's (llama-quant.cpp, without an importance matrix): the output layer,
and half of the layers' value and down projections, get more bits. A row that is no multiple of 256 long gets the format
that llama.cpp falls back to. The package gguf has the plain formats; K-quants are ggml's code, from xllamacpp's wheel.
"""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

from thinktune.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_FILE_TYPES: dict[Precision, str] = {
    "f16": "MOSTLY_F16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}
_PLAIN = {"f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def file_type(precision: Precision) -> Any:
    """Return gguf's name for a whole file of a precision."""
    import gguf

    return gguf.LlamaFileType[_FILE_TYPES[precision]]


def tensor_type(name: str, shape: tuple[int, ...], precision: Precision, layers: int, *, tied: bool) -> Any:
    """Choose the format of a tensor.

    Args:
        layers: of the model.
        tied: the embeddings are the output layer, too.
    """
    import gguf

    if len(shape) < 2 or "ssm_conv1d" in name:  # norms, biases and convolutions are small, and matter
        return gguf.GGMLQuantizationType.F32
    chosen = _PLAIN[precision]
    if precision.endswith(("_k", "_k_m")):
        chosen = _mixed(name, chosen, layers, tied=tied)
        chosen = chosen if shape[-1] % 256 == 0 else _FALLBACK[chosen]
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[chosen]]
    return gguf.GGMLQuantizationType[chosen if shape[-1] % block == 0 else "F16"]


def _mixed(name: str, chosen: str, layers: int, *, tied: bool) -> str:
    if name == ("token_embd.weight" if tied else "output.weight"):
        return "Q6_K"
    if "attn_qkv" in name:
        return {"Q4_K": "Q5_K"}.get(chosen, "Q6_K")
    layer = re.match(r"blk\.(\d+)\.(attn_v|ffn_down)\.", name)
    return "Q6_K" if layer and _gets_more_bits(int(layer[1]), layers) else chosen


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Choose the first and the last eighth of the layers, and every third between."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def require_quantizer(precision: Precision) -> None:
    """Make sure that weights can be written in this precision.

    Raises:
        MissingExtra: it is a K-quant, and ggml's code is not here.
    """
    if precision.endswith(("_k", "_k_m")):
        _ggml()


def quantize(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Return float32 weights in a format, as bytes: [..., bytes of a row]."""
    import gguf
    import numpy as np

    if not kind.name.endswith("_K"):
        packed: np.ndarray[Any, Any] = gguf.quants.quantize(values, kind)
        return packed
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *rows, columns = values.shape
    source = np.ascontiguousarray(values, np.float32)
    out = np.empty((*rows, columns // block * size), np.uint8)
    count = int(np.prod(rows))
    written = _ggml().ggml_quantize_chunk(
        int(kind), source.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), 0, count, columns, None
    )
    if written != out.nbytes:  # another version of the function would write something else
        raise RuntimeError(f"ggml wrote {written:,} bytes of {out.nbytes:,}")
    return out


def _ggml() -> Any:
    hint = "pip install xllamacpp"
    try:
        import xllamacpp.xllamacpp as library

        ggml = ctypes.CDLL(library.__file__)
        function = ggml.ggml_quantize_chunk  # ggml.h: (type, src, dst, start, nrows, n_per_row, imatrix) -> bytes
    except (ImportError, OSError, AttributeError):
        raise MissingExtra("K-quants are written by llama.cpp's own code", hint=hint) from None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return ggml

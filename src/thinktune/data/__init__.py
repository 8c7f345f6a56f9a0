"""rows → examples → tokens with a loss mask → packs. Nothing heavy is imported until rows are read.

prepared = prepare(config, chat)         # for training
examples, report = load_examples(data, fmt, seed, load=load)      # for evaluation
"""

from thinktune.data.examples import Example, Message, Parts, Row, RowFault
from thinktune.data.packing import pack
from thinktune.data.prepare import Prepared, load_examples, prepare
from thinktune.data.report import DataReport
from thinktune.data.tokens import Tokens

__all__ = [
    "DataReport",
    "Example",
    "Message",
    "Parts",
    "Prepared",
    "Row",
    "RowFault",
    "Tokens",
    "load_examples",
    "pack",
    "prepare",
]

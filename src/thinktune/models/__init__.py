"""Models: from a reference to a model that can be trained, asked and merged. `load_model` is the only entry point."""

from thinktune.models.chat import Chat
from thinktune.models.folder import read_settings, write_settings
from thinktune.models.loading import Loaded, load_model, load_tokenizer, make_chat
from thinktune.models.references import Resolved, resolve

__all__ = [
    "Chat",
    "Loaded",
    "Resolved",
    "load_model",
    "load_tokenizer",
    "make_chat",
    "read_settings",
    "resolve",
    "write_settings",
]

"""The engine on a transformers model: continuous batching with a decode loop of our own."""

"""Models that leave: merged, verified, written as GGUF."""

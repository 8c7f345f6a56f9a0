"""The engine on vLLM, which runs in a process of its own."""

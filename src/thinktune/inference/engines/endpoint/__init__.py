"""Models behind OpenAI-compatible servers: `openai:MODEL@URL`."""

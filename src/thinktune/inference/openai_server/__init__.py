"""An OpenAI-compatible server of one model, where there is no vLLM: `python -m thinktune.inference.openai_server MODEL`."""

"""An OpenAI-compatible server of one model, for machines without vLLM.

`python -m thinktune.inference.openai_server MODEL` starts it."""

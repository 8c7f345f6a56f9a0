"""A stand-in for vLLM, as far as our worker process touches it: it says each prompt again, a token a step.

Prompts that begin with token 66 kill the process, with 67 raise inside a step, with 68 are refused; the answer to 69
is the number of requests that are there at its first step.
"""

import os
import signal
from types import SimpleNamespace

from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext

__all__ = ["EngineArgs", "LLMEngine", "SamplingParams"]
__version__ = "0.0-fake"


class EngineArgs(SimpleNamespace):
    pass


class LLMEngine:
    def __init__(self, args):
        if args.max_model_len == 13:
            raise ValueError("No available memory for the cache blocks.")
        config = SimpleNamespace(max_model_len=min(args.max_model_len % 2**31, 2048), get_vocab_size=lambda: 400)
        self.vllm_config = SimpleNamespace(model_config=config)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self._waiting = {}

    @classmethod
    def from_engine_args(cls, args, usage_context=UsageContext.ENGINE_CONTEXT):
        if usage_context is not UsageContext.LLM_CLASS:
            raise ValueError("in this context vLLM takes small batches")
        return cls(args)

    def add_request(self, name, prompt, params, lora_request=None):
        ids = prompt["prompt_token_ids"]
        if ids[0] == 68:
            raise ValueError("this prompt is not to its taste")
        reply = [*ids, *([lora_request.number] if lora_request else [])]
        self._waiting[name] = (ids, reply[: params.max_tokens], params, 0)

    def abort_request(self, names):
        for name in names:
            self._waiting.pop(name, None)

    def has_unfinished_requests(self):
        return bool(self._waiting)

    def step(self):
        outputs = []
        for name, (ids, reply, params, done) in list(self._waiting.items()):
            if ids[0] == 66:
                os.kill(os.getpid(), signal.SIGKILL)
            if ids[0] == 69 and not done:
                reply = [len(self._waiting)]
            if ids[0] == 67:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            done += 1
            self._waiting[name] = (ids, reply, params, done)
            finished = done == len(reply)
            if finished:
                del self._waiting[name]
            if finished or params.output_kind == "delta":
                tokens = reply[done - 1 : done] if params.output_kind == "delta" else reply
                reason = ("length" if done == params.max_tokens else "stop") if finished else None
                outputs.append(
                    SimpleNamespace(
                        request_id=name,
                        finished=finished,
                        prompt_token_ids=ids,
                        prompt_logprobs=[{token: SimpleNamespace(logprob=-float(token))} for token in ids],
                        outputs=[SimpleNamespace(token_ids=tokens, finish_reason=reason)],
                    )
                )
        return outputs

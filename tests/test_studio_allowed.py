"""What a training that is started from the page may be told, and what belongs on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinktune.config.shipped import shipped_configs
from thinktune.errors import ConfigError
from thinktune.studio.training_jobs import Trainings

QUICKSTART = next(file for file in shipped_configs() if file.stem == "quickstart")


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    runs = tmp_path / "runs"
    return Trainings(runs, runs / "studio", models=lambda: ["/models/mine", "runs/a"], data=["/data/rows.jsonl"])


@pytest.mark.parametrize(
    "setting",
    [
        "load.trust_remote_code=true",
        "load={trust_remote_code: true}",
        "model=/etc",
        "model=../x",
        "model=~/x",
        "model=.",
        "model=file:///etc",
        "model=openai:x@http://127.0.0.1",
        "model=tests/scripted.py",
        "data.format=os:system",
        "data.shape=os:system",
        "data.source=/etc/passwd",
        "data.source=~/.ssh/id_rsa",
        "data.source=[{source: /etc/passwd}]",
        "data.source=http://127.0.0.1/",
        "data.cache=/tmp/x",
        "eval.data=/etc/passwd",
        "lora.init=/x",
        "lora.init=a/b",
        "train.trainer={push_to_hub: true}",
        "train.trainer={hub_token: x}",
        "train={trainer: {logging_dir: /x}}",
        "train.report_to=[wandb]",
        "infer.file=/etc/passwd",
        "infer.out=/tmp/x",
        "infer.engine=vllm",
        "load.device=meta:x",
        "output=/tmp/x",
    ],
)
def test_the_page_reaches_no_file_no_code_and_no_other_server(
    setting: str, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(ConfigError):
        trainings.plan("x", QUICKSTART, [setting])


@pytest.mark.parametrize(
    "setting",
    [
        "lora.r=4",
        "lora.targets=[q_proj]",
        "lora.targets=auto",
        "train.optimizer=adamw_8bit",
        "train.gradient_checkpointing=false",
        "train.epochs=2",
        "eval.every=null",
        "ask.questions=['Why?']",
        "quantize=nf4",
        "load.device=cuda:1",
        "data.sample=20",
        "model=/models/mine",
        "model=runs/a",
        "lora.init=runs/a",
        "data.source=/data/rows.jsonl",
        "model=builtin:smollm2",
        "model=Qwen/Qwen2.5-3B-Instruct",
        "model=ms:Qwen/Qwen2.5-3B-Instruct",
        "data.source=openai/gsm8k:main",
        "data.source=[{source: /data/rows.jsonl, weight: 2}, {source: openai/gsm8k}]",
        "data.system=Be brief.",
    ],
)
def test_numbers_choices_hubs_and_what_the_studio_was_started_with_are_free(setting: str, trainings: Trainings) -> None:
    trainings.plan("x", QUICKSTART, [setting])


def test_every_shipped_config_can_be_started_as_it_is(trainings: Trainings) -> None:
    for file in shipped_configs():
        trainings.plan("x", file, [])

"""The config: overrides, refusals that help, and the way to YAML and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from thinktune.config import Config, Data, Lora, config_schema, dump_config, load_config, parse_config
from thinktune.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("model: some/model\nlora:\n  r: 4\ntrain:\n  learning_rate: 1e-4\n")
    return path


def load_text(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, *overrides)
    return str(caught.value)


def test_a_file_sets_what_it_names_and_leaves_the_rest_at_its_default(config_file: Path) -> None:
    config = load_config(config_file)
    assert config.model == "some/model"
    assert config.lora == Lora(r=4)
    assert config.train.learning_rate == 1e-4


def test_the_run_folder_is_named_after_the_file_unless_output_says_otherwise(config_file: Path) -> None:
    assert load_config(config_file).run_folder == Path("runs/mine")
    assert load_config(config_file, ["output=elsewhere/x"]).run_folder == Path("elsewhere/x")


def test_overrides_are_yaml_values_and_the_last_one_wins(config_file: Path) -> None:
    config = load_config(
        config_file,
        ["lora.r=8", "lora.r=16", "lora.targets=[q_proj,v_proj]", "data.sample=500", "train.packing=false"],
    )
    assert config.lora == Lora(r=16, targets=["q_proj", "v_proj"])
    assert (config.data.sample, config.train.packing) == (500, False)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("2e-5", 2e-5), ("1.5e-4", 1.5e-4), ("3E2", 300.0), ("1e+1", 10.0), ("0.002", 0.002), ("1", 1.0)],
)
def test_numbers_with_exponents_are_numbers(config_file: Path, override: str, expected: float) -> None:
    assert load_config(config_file, [f"train.learning_rate={override}"]).train.learning_rate == expected


def test_an_override_may_hold_equals_signs_and_structure(config_file: Path) -> None:
    config = load_config(
        config_file,
        ["data.system='a=b'", "data.source=[{source: a.jsonl, weight: 2}, {source: b.csv}]", "train.trainer={x: 1}"],
    )
    assert config.data.system == "a=b"
    assert isinstance(config.data.source, list)
    assert [source.weight for source in config.data.source] == [2.0, 1.0]
    assert config.train.trainer == {"x": 1}


@pytest.mark.parametrize("text", ["data:\nmodel: m\n", "model: m\ndata: ~\n"])
def test_an_empty_section_is_the_section_with_its_defaults(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text).data == Data()
    assert load_text(tmp_path, text, "data.sample=5").data.sample == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modell: x\n", "modell: unknown key; did you mean model?"),
        ("lora: {ralpha: 3}\n", "lora.ralpha: unknown key; did you mean alpha?"),
        ("train: {learnig_rate: 1}\n", "train.learnig_rate: unknown key; did you mean learning_rate?"),
        ("lora: {zzz: 3}\n", "known are alpha, dropout,"),
        ("ask: {sampling: {temprature: 1}}\n", "ask.sampling.temprature: unknown key; did you mean temperature?"),
        ("infer: {profiles: {math: {topp: 1}}}\n", "unknown key; did you mean top_p?"),
        ("data: {source: [{source: a, wieght: 2}]}\n", "data.source.0.wieght: unknown key; did you mean weight?"),
        ("lora: {r: four}\n", "lora.r: Input should be a valid integer"),
        ("lora: {r: true}\n", "lora.r: should not be true or false"),
        ("lora: {r: 0}\n", "lora.r: Input should be greater than or equal to 1"),
        ("lora: {targets: []}\n", "lora.targets: List should have at least 1 item"),
        ("lora: {targets: q_proj}\n", "lora.targets: Input should be a valid list"),
        ("lora: 3\n", "lora: "),
        ("data: {overlong: trim}\n", "data.overlong: Input should be 'drop', 'error' or 'cut'"),
        ("data: {source: 3}\n", "data.source: Input should be a valid list"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate: Input should be a finite number"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate: Input should be"),
        ("format: {template: '{think} {answer}'}\n", "format.template: does not render to a well-formed completion"),
        ("format: {template: 'x'}\n", "needs {think} and {answer} once each"),
        ("train: {trainer: {learning_rate: 1}}\n", "train.learning_rate"),
        ("infer: {profiles: {poetry: {}}}\n", "infer.profiles.poetry"),
        ("- a\n- b\n", "must be a mapping of settings, not a list"),
        ("", "is empty"),
        ("a: [1\n", "not YAML"),
        ("lora:\n  r: 4\n  r: 8\n", "r is set twice"),
        ("model: !!python/object:os.system x\n", "not YAML"),
    ],
)
def test_a_wrong_config_is_refused_with_what_would_be_right(tmp_path: Path, text: str, says: str) -> None:
    message = error_of(tmp_path, text)
    assert says in message
    assert "written.yaml" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = error_of(tmp_path, "modell: x\nlora: {r: 0, alhpa: 3}\n")
    assert all(part in message for part in ("modell", "lora.r", "did you mean alpha"))


def test_a_wrong_source_is_one_problem_and_not_one_for_each_way_to_write_it(tmp_path: Path) -> None:
    message = error_of(tmp_path, "data: {source: [{source: a, wieght: 2}]}\n")
    assert "valid string" not in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.r", "is not key=value"),
        ("=4", "is not key=value"),
        ("model.r=4", "model is not a section"),
        ("lora.r=[", "the value is not YAML"),
        ("lora.rr=4", "lora.rr: unknown key"),
        ("lorra.r=4", "lorra: unknown key; did you mean lora?"),
        ("data.sample=", None),
    ],
)
def test_an_override_that_cannot_work_is_named(config_file: Path, override: str, says: str | None) -> None:
    if says is None:  # an empty value is YAML's null, which is a value like others
        assert load_config(config_file, [override]).data.sample is None
        return
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override])
    assert says in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")


def test_a_dumped_config_reads_back_as_the_same(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model": "ms:小/模型",
        "seed": 7,
        "data": {
            "source": [{"source": "a.jsonl", "weight": 2}, {"source": "b.csv", "split": "test"}],
            "system": "multi\nline: text",
            "sample": 3,
            "cache": "some/where",
        },
        "format": {"template": "<think>\n{think}\n</think>\n<answer>\n{answer}\n</answer>"},
        "infer": {"profiles": {"math": {"temperature": 0.3, "stop": ["</answer>", "\n\n"], "n": 2}}},
        "train": {"learning_rate": 1e-5, "trainer": {"adam_beta2": 0.95}},
        "output": "runs/x",
    }
    config = parse_config(values)
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_seeds_default_to_the_top_level_one() -> None:
    config = parse_config({"seed": 5, "train": {"seed": 6}})
    assert (config.data_seed, config.train_seed) == (5, 6)


def test_a_config_cannot_be_changed_behind_ones_back() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


def test_the_schema_accepts_what_the_config_accepts_and_refuses_unknown_keys() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(config_schema())
    jsonschema.validate(yaml.safe_load(dump_config(Config())), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"lora": {"rank": 4}}, schema)


@pytest.mark.parametrize("values", [{"seed": -1}, {"seed": 2**32}, {"train": {"seed": -1}}, {"lora": {"targets": []}}])
def test_what_no_training_could_begin_with_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"seed|targets"):
        parse_config(values)


def test_a_trainer_field_that_our_loss_would_ignore_is_refused() -> None:
    with pytest.raises(ConfigError, match="label_smoothing_factor is set by thinktune"):
        parse_config({"train": {"trainer": {"label_smoothing_factor": 0.1}}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: x\nseed: " + "9" * 5000, "cannot be read"),
        ("model: 2020-99-99", "cannot be read"),
        ("model: !!timestamp x", "cannot be read"),
        ("model: !!bool 5", "cannot be read"),
        ('model: "\\ud800"', "surrogate"),
        ("a: &a [*a]\nmodel: *a", "nested too deep"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deep"),
        ("".join(" " * depth + "a:\n" for depth in range(1500)), "nested too deep"),
        (
            "a: &a [x, x]\n" + "".join(f"a{at}: &a{at + 1} [*a{at or ''}, *a{at or ''}]\n" for at in range(40)),
            "aliases",
        ),
        ("model: x\n# " + "x" * (4 << 20), "larger than 4 MiB"),
    ],
)
def test_hostile_yaml_is_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        load_config(file)


def test_a_pipe_and_a_device_are_no_config_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="a device or a pipe"):
            load_config(file)

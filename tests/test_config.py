import json
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import pytest

from t2l.config import config_from_dict, config_to_dict, load_config, override
from t2l.diffusion import DiffusionConfig
from t2l.model.autoencoder import AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    name: str = "demo"
    lr: float = 1e-3
    kind: Literal["eps", "v"] = "eps"
    limit: int | None = None
    shuffle: bool = True
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)


def test_a_config_goes_through_json_and_back():
    config = Outer(steps=3, limit=5, model=AutoencoderConfig(channel_multipliers=(1, 2), patch=2))
    assert config_from_dict(Outer, json.loads(json.dumps(config_to_dict(config)))) == config


def test_a_misspelt_field_is_named_with_the_ones_that_exist():
    with pytest.raises(ValueError, match="AutoencoderConfig has no latent_chanels; it has .*latent_channels"):
        config_from_dict(AutoencoderConfig, {"latent_chanels": 4})
    with pytest.raises(ValueError, match="AutoencoderConfig has no latent_chanels"):
        config_from_dict(Outer, {"steps": 1, "model": {"latent_chanels": 4}})


def test_a_name_that_is_near_is_proposed_and_others_are_not():
    with pytest.raises(ValueError, match="; did you mean latent_channels\\?$"):
        config_from_dict(AutoencoderConfig, {"latent_chanels": 4})
    with pytest.raises(ValueError, match="Outer has no xyz; it has [a-z_, ]*$"):
        config_from_dict(Outer, {"steps": 1, "xyz": 4})


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="Outer is incomplete: .*'steps'"):
        config_from_dict(Outer, {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "many", "Outer.steps must be int, got 'many'"),
        ("steps", True, "Outer.steps must be int, got True"),
        ("steps", 1.5, "Outer.steps must be int, got 1.5"),
        ("steps", None, "Outer.steps must be int, got None"),
        ("lr", "1e-3", "Outer.lr must be float, got '1e-3'"),
        ("shuffle", 1, "Outer.shuffle must be bool, got 1"),
        ("kind", "x0", "Outer.kind must be one of 'eps', 'v', got 'x0'"),
        ("limit", "none", "Outer.limit must be int, got 'none'"),
        ("model", 3, "Outer.model must be AutoencoderConfig, got 3"),
        ("model", {"channel_multipliers": [1, "2"]}, "AutoencoderConfig.channel_multipliers must be int, got '2'"),
        ("model", {"channel_multipliers": 4}, "AutoencoderConfig.channel_multipliers must be tuple, got 4"),
        ("model", {"patch": 3}, "patch must be 1 or 2, got 3"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(Outer, {"steps": 1} | {name: value})


def test_overrides_reach_outer_and_inner_values():
    texts = ["steps=7", "lr=1", "kind=v", "limit=9", "shuffle=false", "name=run 2", "model.channel_multipliers=[1, 2]"]
    changed = override(Outer(steps=1), texts)
    expected = Outer(steps=7, lr=1.0, kind="v", limit=9, shuffle=False, name="run 2")
    assert changed == replace(expected, model=AutoencoderConfig(channel_multipliers=(1, 2)))
    assert isinstance(changed.lr, float)
    assert override(changed, ["limit=null"]).limit is None
    assert override(changed, []) == changed


def test_an_override_that_looks_like_json_is_json_and_quotes_make_it_text():
    assert override(Outer(steps=1), ['name="2024"']).name == "2024"
    with pytest.raises(ValueError, match="Outer.name must be str, got 2024"):
        override(Outer(steps=1), ["name=2024"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "written name=value, got 'steps'"),
        ("step=3", "Outer has no step; it has .*steps"),
        ("modle.patch=2", "Outer has no modle.patch; it has .*model"),
        ("model.path=2", "AutoencoderConfig has no path; it has .*patch"),
        ("steps.x=2", "Outer has no steps.x"),
        ("steps=few", "Outer.steps must be int, got 'few'"),
    ],
)
def test_a_wrong_override_is_answered(text, message):
    with pytest.raises(ValueError, match=message):
        override(Outer(steps=1), [text])


def test_a_config_file_is_read_and_its_faults_name_it(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        load_config(DiffusionConfig, path)
    path.write_text('{"prediction": "v"}')
    assert load_config(DiffusionConfig, path) == DiffusionConfig(prediction="v")
    for text, message in (("{", "is not JSON"), ("[1]", "one JSON object, got a list"), ('{"beta": 1}', "has no beta")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"config.json.*{message}"):
            load_config(DiffusionConfig, path)


@dataclass(frozen=True, kw_only=True)
class Inner:
    OLD_NAMES: ClassVar[dict[str, str]] = {"accumulate": "gradient_accumulation_steps"}
    gradient_accumulation_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Renamed:
    OLD_NAMES: ClassVar[dict[str, str]] = {"guidance": "guidance_scale", "loop": "inner"}
    guidance_scale: float = 4.0
    inner: Inner = field(default_factory=Inner)


def test_names_of_earlier_versions_go_on_working():
    wanted = Renamed(guidance_scale=2.0, inner=Inner(gradient_accumulation_steps=3))
    assert config_from_dict(Renamed, {"guidance": 2, "loop": {"accumulate": 3}}) == wanted
    assert override(Renamed(), ["guidance=2", "loop.accumulate=3"]) == wanted
    assert "OLD_NAMES" not in config_to_dict(wanted)


def test_an_old_and_a_new_name_together_are_refused():
    with pytest.raises(
        ValueError, match="Renamed has guidance and guidance_scale, which are one thing: leave guidance out"
    ):
        config_from_dict(Renamed, {"guidance": 2, "guidance_scale": 2})

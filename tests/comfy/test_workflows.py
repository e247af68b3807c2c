"""The workflows that artists open, run in the real server as prompts; test_browser.py opens the files themselves, and
test_workflow_files.py looks at where things lie in them."""

import json
from pathlib import Path

import numpy as np
import pytest

from t2l import GenerateConfig, Text2Layer, text_to_layers
from tests.comfy.conftest import in_few_steps

ROOT = Path(__file__).resolve().parents[2]
TWINS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "workflows").glob("*.json")}
MODELS = {"picture-to-layers-with-core-models"}  # run with models that are not at hand
PICTURES = {"batch-of-four": 4, "sticker-sheet": 4}


def test_every_workflow_has_its_twin_and_its_picture():
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert {name.removeprefix("1-") for name in workflows} == TWINS.keys() and len(workflows) >= 13
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == workflows
    assert min(workflows) == "1-text-to-layers"  # lists in order of names begin with it


@pytest.mark.parametrize("name", sorted(TWINS.keys() - MODELS))
def test_a_workflow_runs_to_its_end(server, name):
    result = server.run(in_few_steps(TWINS[name]))
    assert result.error is None and not result.node_errors
    saved = next(key for key, node in TWINS[name].items() if node["class_type"] == "SaveImage")
    pictures = result.pictures[saved]
    assert len(pictures) == PICTURES.get(name, 1)
    assert all(picture.std() > 10 for picture in pictures)


def test_comfyui_paints_what_the_library_paints(server):
    """KSampler's dpmpp_2m on sgm_uniform and diffusers' DPM-Solver++ on trailing steps: the same noise, nearly the same
    times.
    """
    graph = TWINS["text-to-layers"]
    composite = next(number for number, node in graph.items() if node["inputs"].get("images", [0, 0])[1] == 3)
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"seed": 8, "steps": 25, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform"}
    picture = server.run(graph).pictures[composite][0].astype(float)
    model = Text2Layer.load(ROOT / "models" / "text2layer-demo.safetensors")
    config = GenerateConfig(height=256, width=256, seed=8, num_steps=25, sampler="dpm")
    ours = text_to_layers(model, ["a strawberry on a beach"], config).layers.composite()[0]
    assert np.abs(picture - 255 * ours.permute(1, 2, 0).numpy()).mean() < 4


def test_save_and_reload_shows_what_it_has_just_saved(server):
    graph = in_few_steps(TWINS["save-and-reload-a-psd"])
    psd = next(number for number, node in graph.items() if node["class_type"] == "T2L_SaveLayers")
    reloaded = next(number for number, node in graph.items() if node["class_type"] == "SaveImage")
    result = server.run(graph)
    assert np.abs(result.pictures[psd][0][..., :3].astype(int) - result.pictures[reloaded][0]).max() <= 1
    assert sorted((server.folder / "output" / "text2layer").glob("strawberry_*_.psd"))

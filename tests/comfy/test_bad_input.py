"""What a stranger's workflow or a broken file may bring: refused in one sentence, and the server goes on."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "text2layer-demo.safetensors"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def load(name, kind="T2L_LoadCheckpoint"):
    """Load a file and use what comes of it."""
    key, vae = ("checkpoint", 3) if kind == "T2L_LoadCheckpoint" else ("autoencoder", 1)
    return {
        "load": node(kind, **{key: name}),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "latent": node("VAEEncode", pixels=["picture", 0], vae=["load", vae]),
        "decode": node("VAEDecode", samples=["latent", 0], vae=["load", vae]),
        "seen": node("PreviewImage", images=["decode", 0]),
    }


@pytest.fixture(scope="module")
def files(server):
    """Files in models/text2layer that should not be there."""
    folder = server.folder / "models" / "text2layer"
    folder.mkdir(parents=True, exist_ok=True)
    whole = DEMO.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    (folder / "pickle.ckpt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    save_file({"encoder.conv_in.weight": torch.zeros(2, 2)}, folder / "vae.safetensors")
    (folder / ".hidden.safetensors").write_bytes(whole)
    return folder


@pytest.mark.parametrize("kind", ["T2L_LoadCheckpoint", "T2L_LoadAutoencoder"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("truncated.safetensors", "truncated"),
        ("empty.safetensors", "safetensors"),
        ("pickle.safetensors", "safetensors"),
        ("lora.safetensors", "is a LoRA; a Text2Layer checkpoint"),
        ("vae.safetensors", "is an ordinary autoencoder; a Text2Layer checkpoint"),
        ("pickle.ckpt", "must be one of the files in models/text2layer"),
        ("../checkpoints/other.safetensors", "must be one of the files in models/text2layer"),
        ("/etc/hostname", "must be one of the files in models/text2layer"),
        ("not-there.safetensors", "must be one of the files in models/text2layer"),
        (".hidden.safetensors", "must be one of the files in models/text2layer"),
        ("..\\text2layer\\lora.safetensors", "must be one of the files in models/text2layer"),
        ("nul\0.safetensors", "must be one of the files in models/text2layer"),
        pytest.param("a/" * 250_000 + "x.safetensors", "got 'a/a/a/", id="enormous"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_node_and_input(server, files, kind, name, sentence):
    result = server.run(load(name, kind))
    input_name = (
        "Load Text2Layer Checkpoint: checkpoint"
        if kind == "T2L_LoadCheckpoint"
        else "Load Layered Autoencoder: autoencoder"
    )
    assert sentence in result.error
    assert input_name in result.error
    assert not Path("/tmp/owned").exists()


def test_a_link_that_leads_out_of_the_model_folders_is_refused_and_one_within_is_not(server, files, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(DEMO.read_bytes())
    (files / "link-out.safetensors").symlink_to(outside)
    (files / "link-in.safetensors").symlink_to(DEMO)
    assert (
        "must lie in ComfyUI's model folders, got 'link-out.safetensors'"
        in server.run(load("link-out.safetensors")).error
    )
    assert server.run(load("link-in.safetensors")).error is None


@pytest.mark.parametrize("name", ["deep/er/demo.safetensors", "deep\\er\\demo.safetensors"])
@pytest.mark.parametrize("kind", ["T2L_LoadCheckpoint", "T2L_LoadAutoencoder"])
def test_a_file_in_a_sub_folder_is_found_with_the_separators_of_every_system(server, files, kind, name):
    (files / "deep" / "er").mkdir(parents=True, exist_ok=True)
    (files / "deep" / "er" / "demo.safetensors").write_bytes(DEMO.read_bytes())
    assert server.run(load(name, kind)).error is None


def test_a_vae_is_no_layered_autoencoder_and_an_empty_socket_is_named(server):
    wrong = load(DEMO.name)
    wrong["decode"] = node("T2L_DecodeLayers", autoencoder=["load", 3], latent=["latent", 0])
    (refused,) = server.run(wrong).node_errors.values()
    assert refused["errors"][0]["type"] == "return_type_mismatch"
    del wrong["decode"]["inputs"]["autoencoder"]
    (refused,) = server.run(wrong).node_errors.values()
    assert refused["errors"][0]["extra_info"]["input_name"] == "autoencoder"


def test_the_ordinary_vae_refuses_latents_of_another_kind(server):
    graph = load(DEMO.name) | {"latent": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
    assert "must have 8 channels, got 4" in server.run(graph).error


def test_batches_that_do_not_fit_are_refused(server):
    graph = {
        "two": node("EmptyImage", width=64, height=64, batch_size=2, color=0),
        "three": node("EmptyImage", width=64, height=64, batch_size=3, color=0),
        "mask": node("SolidMask", value=1.0, width=64, height=64),
        "join": node("T2L_JoinLayers", foreground=["two", 0], background=["three", 0], mask=["mask", 0]),
        "split": node("T2L_SplitLayers", layers=["join", 0]),
        "seen": node("PreviewImage", images=["split", 3]),
    }
    assert re.search(r"Join Layers: batches must hold 3 pictures.* got \{'foreground': 2\}", server.run(graph).error)


def test_tiles_that_would_not_move_on_are_refused(server):
    graph = load(DEMO.name)
    tiles = {"tile_size": 64, "overlap": 32}
    graph["decode"] = node("T2L_DecodeLayersTiled", autoencoder=["load", 2], latent=["latent", 0], **tiles)
    assert "overlap must be at most a quarter of tile_size (16), got 32" in server.run(graph).error


def test_the_server_still_works(server, files):
    assert server.run(load(DEMO.name)).error is None

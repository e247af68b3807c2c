"""Loaders: a Text2Layer checkpoint -> MODEL, CLIP, layered autoencoder, VAE; or its autoencoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..t2l.budget import shown
from .file_names import is_offered, match_name
from .inputs import node_errors, refusal, validated
from .types import AUTOENCODER, schema

FOLDER = "text2layer"
SHIPPED = Path(__file__).resolve().parent.parent / "models"  # of the pack: the demo checkpoint
PARTS = {"salient.safetensors", "mask-filter.safetensors", "inpainting-filter.safetensors"}  # shipped, no checkpoints
AUTOENCODER_OUTPUT = AUTOENCODER.Output(display_name="autoencoder", tooltip="For Encode Layers and Decode Layers.")
VAE_OUTPUT = io.Vae.Output(
    display_name="vae", tooltip="An ordinary VAE: decodes the composite, encodes a flat picture without layers."
)


def register_folders() -> None:
    """models/text2layer of ComfyUI and the pack's own models/ as one list of .safetensors files."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(SHIPPED))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


def listed_files() -> list[str]:
    """The names a loader offers, in ComfyUI's order."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if is_offered(name) and name not in PARTS]


def path_of(name: Any, source: str) -> str:
    """The path of a listed file, named with either separator; `source` names the input in errors.

    Raises ValueError for any other name, and for a link out of the model folders: workflows are shared by strangers.
    """
    listed = match_name(name, listed_files())
    if listed is None:
        raise ValueError(
            f"{source} must be one of the files in models/{FOLDER}, got {shown(name)}; put the file there, press R "
            "to refresh, and choose it in the node"
        )
    path = folder_paths.get_full_path_or_raise(FOLDER, listed)
    folders = [folder for folders, _ in folder_paths.folder_names_and_paths.values() for folder in folders]
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise ValueError(
            f"{source} must lie in ComfyUI's model folders, got {listed!r}, a link that leads out of them; put the "
            "file itself there, or name the folder it lies in in extra_model_paths.yaml"
        )
    return path


def stamp_of(name: Any) -> Any:
    """What changes when the file does, so that a replaced file is loaded anew."""
    listed = match_name(name, listed_files())
    path = folder_paths.get_full_path(FOLDER, listed) if listed else None
    stat = Path(path).stat() if path else None
    return (stat.st_mtime_ns, stat.st_size) if stat else name


class LoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_LoadCheckpoint",
            display_name="Load Text2Layer Checkpoint",
            category="text2layer/loaders",
            search_aliases=["text to layers", "layered diffusion", "transparent", "cutout", "sticker"],
            description="Loads a Text2Layer checkpoint from models/text2layer, or the small one that comes with the "
            "pack.",
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=listed_files(), tooltip="A .safetensors file in models/text2layer."
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For KSampler: it paints both layers and the mask at once."
                ),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode."),
                AUTOENCODER_OUTPUT,
                VAE_OUTPUT,
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: Any) -> bool | str:
        return refusal("Load Text2Layer Checkpoint", lambda name: path_of(name, "checkpoint"), checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: Any) -> Any:
        return stamp_of(checkpoint)

    @classmethod
    @validated
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        path = path_of(checkpoint, "checkpoint")
        from ..t2l.model.text2layer import read_parts  # where one is loaded: ComfyUI waits for a pack
        from .autoencoder import ManagedAutoencoder
        from .diffusion_model import build_clip, build_model

        with node_errors("checkpoint"):
            parts, autoencoder = read_parts(path), ManagedAutoencoder(path)
            model = build_model(parts, autoencoder.model.config, path)
            clip = build_clip(parts, path)
        return io.NodeOutput(model, clip, autoencoder, autoencoder.as_vae())


class LoadAutoencoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_LoadAutoencoder",
            display_name="Load Layered Autoencoder",
            category="text2layer/loaders",
            search_aliases=["text2layer vae", "layered vae", "layer", "alpha", "matte"],
            description="Loads only the autoencoder of a Text2Layer file: enough to take layers into latents and back.",
            inputs=[
                io.Combo.Input(
                    "autoencoder",
                    options=listed_files(),
                    tooltip="A .safetensors file in models/text2layer: an autoencoder alone or a whole checkpoint.",
                )
            ],
            outputs=[AUTOENCODER_OUTPUT, VAE_OUTPUT],
        )

    @classmethod
    def validate_inputs(cls, autoencoder: Any) -> bool | str:
        return refusal("Load Layered Autoencoder", lambda name: path_of(name, "autoencoder"), autoencoder)

    @classmethod
    def fingerprint_inputs(cls, autoencoder: Any) -> Any:
        return stamp_of(autoencoder)

    @classmethod
    @validated
    def execute(cls, autoencoder: str) -> io.NodeOutput:
        path = path_of(autoencoder, "autoencoder")
        from .autoencoder import ManagedAutoencoder

        with node_errors("autoencoder"):
            managed = ManagedAutoencoder(path)
        return io.NodeOutput(managed, managed.as_vae())

"""Layers saved as files that editors open, and such files loaded."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, get_args

import folder_paths
from comfy.cli_args import args
from comfy_api.v0_0_2 import io, ui

from ..t2l.budget import shown
from ..t2l.compositing.stack import TOP, Stack
from ..t2l.io.file_name import clean_prefix
from ..t2l.io.layer_file import READ, check_format, open_layer_file, save_layer_file, save_png_set
from ..t2l.io.layer_nodes import LayerFile, MaskAs
from .documents import MAX_FRAMES, composited, document_to_stack, stack_to_document, stack_to_layers, unknown_to_core
from .file_names import LONGEST, check_inside, files_below, path_below
from .inputs import check_choices, node_errors, refusal, validated
from .types import (
    CUTOUT_OUTPUT,
    LAYER_INPUT,
    LAYERS,
    PART_OUTPUTS,
    choice_input,
    layers_to_cutout,
    layers_to_sockets,
    schema,
)

FORMATS = ["psd", "ora", "png set"]
BITS = ["8", "16"]
LONGEST_PREFIX = 1000  # characters: with the output folder's, no more than a system opens
MASKS = list(get_args(MaskAs))
INPUT, OUTPUT, TEMP, EXAMPLE = "input", "output", "temp", "example"  # in brackets behind a name: the folder it lies in
# A file may take a gigabyte, and psd-tools' warnings are caught for the whole process.
_ONE_AT_A_TIME = threading.Lock()
EXAMPLES = Path(__file__).resolve().parent.parent / "workflows"


class SaveLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_SaveLayers",
            display_name="Save Layers",
            category="text2layer/files",
            search_aliases=["psd", "photoshop", "krita", "gimp", "openraster", "export layer", "transparent"],
            description="Saves layers as a file for Photoshop, Krita or GIMP, or as a set of PNG files.",
            inputs=[
                LAYERS.Input("layers", tooltip="From Join, Decode or Load Layers."),
                io.String.Input(
                    "filename_prefix",
                    default="text2layer/layers",
                    tooltip="Below ComfyUI's output folder; folder/name makes a folder. Files are numbered, none is "
                    "overwritten.",
                ),
                choice_input(
                    "format",
                    FORMATS,
                    "psd for Photoshop, Krita and GIMP; ora (OpenRaster) for Krita; png set for everything else.",
                ),
                choice_input("bits", BITS, "Per channel. 16 keeps fine gradients; psd only."),
                choice_input(
                    "mask_as", MASKS, "layer mask keeps the colours under the mask and can be painted on; psd only."
                ),
            ],
            outputs=[
                io.Custom("COMBO").Output(  # io.Combo.Output is of another type than io.Combo.Input in ComfyUI 0.3.75
                    display_name="file", tooltip="The file that was written, by the name that Load Layers knows it by."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format: Any, bits: Any, mask_as: Any) -> bool | str:
        given = {"format": format, "bits": bits, "mask_as": mask_as}
        return refusal("Save Layers", lambda values: check_choices(cls, values), given)

    @classmethod
    @validated
    def execute(cls, layers: Any, filename_prefix: str, format: str, bits: str, mask_as: str) -> io.NodeOutput:
        stack = document_to_stack(layers)
        if format != "png set":
            check_format(f".{format}", int(bits))  # before a folder is made for what cannot be written
        with node_errors("filename_prefix"):
            folder, stem, subfolder = _free_name(filename_prefix, stack)
        texts = _texts(cls.hidden)
        if format == "png set":
            paths = save_png_set(stack, folder, stem, texts)
        else:
            paths = [folder / f"{stem}_.{format}"]
            save_layer_file(stack, paths[0], int(bits), mask_as, texts)
        files = [{"filename": path.name, "subfolder": subfolder, "type": "output"} for path in paths]
        composite = composited(stack)
        shown = files[-1:] if format == "png set" else ui.PreviewImage(composite, cls=cls).as_dict()["images"]
        written = f"{(Path(subfolder) / paths[-1].name).as_posix()} [{OUTPUT}]"
        return io.NodeOutput(written, ui={"images": shown, "files": files})


class LoadLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_LoadLayers",
            display_name="Load Layers",
            category="text2layer/files",
            search_aliases=["psd", "psb", "photoshop", "krita", "gimp", "openraster", "import layer"],
            description="Loads the layers of a Photoshop or OpenRaster file.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_listed_files(),
                    tooltip="A .psd, .psb or .ora file in ComfyUI's input folder or a folder in it; the button below "
                    "puts one there.",
                ),
                LAYER_INPUT,
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="All layers as one document."),
                *PART_OUTPUTS,
                io.String.Output(
                    display_name="notes",
                    tooltip="What could not be shown as the editor shows it; empty when all could.",
                ),
                CUTOUT_OUTPUT,
            ],
        )

    @classmethod
    def validate_inputs(cls, file: Any) -> bool | str:
        return refusal("Load Layers", path_of, file)

    @classmethod
    def fingerprint_inputs(cls, file: Any, layer: str = TOP) -> Any:
        """A file replaced under the same name is loaded anew."""
        stat = None if file is None else path_of(file).stat()
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    @validated
    def execute(cls, file: Any, layer: str = TOP) -> io.NodeOutput:
        opened = read_chosen(file)
        stack = opened.stack
        parts = stack_to_layers(stack, layer)
        return io.NodeOutput(
            stack_to_document(stack),
            *layers_to_sockets(parts),
            composited(stack),
            "\n".join([*opened.notes, *unknown_to_core(stack)]),
            layers_to_cutout(parts),
        )


def read_chosen(file: Any) -> LayerFile:
    """The file that Load Layers' input names, whole. Raises ValueError in the name of the input."""
    path = path_of(file)
    with node_errors("file"), _ONE_AT_A_TIME:
        opened = open_layer_file(path)
        if len(opened.stack.layers) > MAX_FRAMES:
            raise ValueError(
                f"{path.name} has {len(opened.stack.layers)} layers, a LAYERS document holds at most {MAX_FRAMES}; "
                "merge some in your editor"
            )
    return opened


def _free_name(prefix: str, stack: Stack) -> tuple[Path, str, str]:
    """Folder, stem with a number that no file there has, and the folder below ComfyUI's output folder."""
    output = folder_paths.get_output_directory()
    cleaned = clean_prefix(prefix)  # long parts are cut, a long prompt filled in by the frontend, too
    if len(cleaned) > LONGEST_PREFIX:
        raise ValueError(f"must have at most {LONGEST_PREFIX} characters, got {len(cleaned):,}; write a shorter name")
    name = _filled_in(cleaned, output, stack)
    check_inside(output, Path(name).parent)
    try:
        found = folder_paths.get_save_image_path(name, output)
    except OSError as error:  # a file where a folder should be, no permission, a path longer than the system's
        reason = (error.strerror or "it cannot be made").lower()
        raise ValueError(f"must name a folder that can be used, got {shown(name)}: {reason}") from error
    folder, name, counter, subfolder = Path(found[0]), *found[1:4]
    taken = {entry.name.lower() for entry in folder.iterdir()}
    while any(entry.startswith(f"{name}_{counter:05}_".lower()) for entry in taken):
        counter += 1
    return folder, f"{name}_{counter:05}", subfolder


def _filled_in(prefix: str, output: str, stack: Stack) -> str:
    """A clean prefix with ComfyUI's %year% and the like filled in, by ComfyUI itself, which here makes no folder."""
    return folder_paths.get_save_image_path(prefix.replace("/", "|"), output, stack.width, stack.height)[4].replace(
        "|", "/"
    )


def _texts(hidden: Any) -> dict[str, str]:
    """Prompt and workflow as JSON, unless ComfyUI was started with --disable-metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    found = {"prompt": hidden.prompt} | {name: x for name, x in (hidden.extra_pnginfo or {}).items()}
    return {name: json.dumps(value) for name, value in found.items() if value and name.isidentifier()}


def _folders() -> dict[str, str | Path]:
    """The folders that Load Layers reads, by what stands in brackets behind a name."""
    return {
        INPUT: folder_paths.get_input_directory(),
        OUTPUT: folder_paths.get_output_directory(),
        EXAMPLE: EXAMPLES,
        TEMP: folder_paths.get_temp_directory(),
    }


def _listed_files() -> list[str]:
    """What Load Layers offers: the layer files of the input folder, of the output folder, and the examples."""
    found = {kind: files_below(folder, READ) for kind, folder in _folders().items() if kind != TEMP}
    return [name if kind == INPUT else f"{name} [{kind}]" for kind, names in found.items() for name in names]


def path_of(name: Any) -> Path:
    """The path of a file that Load Layers may read. Raises ValueError for others: workflows are shared by strangers."""
    folders = _folders()
    short = name if isinstance(name, str) and len(name) <= LONGEST else ""
    kind = next((kind for kind in folders if short.endswith(f"[{kind}]")), None)
    plain = short if kind is None else short.removesuffix(f"[{kind}]").removesuffix(" ")
    path = path_below(folders[kind or INPUT], plain)
    if path is None or not path.name.lower().endswith(READ):
        raise ValueError(
            f"file must be one of the {', '.join(READ)} files in ComfyUI's input folder, got {shown(name)}; put the "
            "file there, press R to refresh, and choose it in the node"
        )
    return path

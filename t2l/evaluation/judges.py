"""The frozen networks that look at composites: Lite0 of the extra `eval`, and files of the user's own.

A file comes from a path, as .safetensors or .onnx: a pickle or TorchScript can run code when opened and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import check_regular, read_object, shown_path
from ..io.checkpoint import fill_exactly, read_tensors
from ..io.header import PICKLES
from ..layers import Layers
from ..model.efficientnet import load_lite0
from ..model.onnx import OnnxNetwork
from ..model.saliency import Preset, SaliencyModel, saliency_model
from ..model.salient import load_salient
from ..model.tokenizer import Tokenizer
from .clip import build_clip, clip_score
from .inception import FEATURES, INPUT_SIZE, InceptionV3, clean_input, inception_weights
from .metrics import mask_iou

Features = Callable[[Tensor], Tensor]  # composites (N, 3, H, W) in [0, 1] -> (N, D)
Score = Callable[[Tensor, Sequence[str]], Tensor]  # composites and their captions -> (N,)
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
CONVERT = (
    "import torch, safetensors.torch as s; s.save_file({{n: x.contiguous() for n, x in "
    "torch.load('{0}', weights_only=True).items()}}, '{1}-weights.safetensors')"
)


@dataclass(frozen=True, eq=False)
class Judges:
    """The networks on one device, and how large the pictures are that they are shown. All they say lies on the CPU."""

    network: Features  # Lite0
    size: int  # pixels along a side
    device: torch.device
    masks: Mapping[str, SaliencyModel] = field(default_factory=dict)  # what finds a subject: "saliency", "segmenter"
    inception: Features | None = None  # composites -> Clean-FID's features (N, 2048)
    clip: Score | None = None

    @torch.no_grad()
    def features(self, layers: Layers, scale: float = 1.0) -> Tensor:
        """Lite0 features of the composites at `size`, (N, 1280). scale: by which they are scaled before, so soft."""
        return self.network(self._shown(layers, scale)).cpu()

    @torch.no_grad()
    def others(self, layers: Layers, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the user's own networks say: "clean" (N, 2048) and "clip" (N,), those that there are."""
        scores = {} if self.inception is None else {"clean": self.clean(layers)}
        return scores if self.clip is None else scores | {"clip": self.clip(self._shown(layers), captions)}

    @torch.no_grad()
    def clean(self, layers: Layers) -> Tensor:
        """Clean-FID's features of the composites at `size`, (N, 2048)."""
        assert self.inception is not None, "clean is asked for only with an InceptionV3"
        return self.inception(self._shown(layers)).cpu()

    def mask_iou(self, name: str, layers: Layers) -> Tensor:
        """IOU of each mask with the subject that one of `masks` finds in its composite, (N,)."""
        return mask_iou(layers.mask.float().cpu(), self.masks[name](layers.composite()))

    def _shown(self, layers: Layers, scale: float = 1.0) -> Tensor:
        composites = layers.composite().to(self.device, torch.float32)
        soft = tuple(max(1, round(scale * side)) for side in layers.size)
        for size in (soft, (self.size, self.size)):
            if composites.shape[-2:] != size:
                composites = F.interpolate(composites, size, mode="bicubic", antialias=True).clamp(0, 1)
        return composites


def open_judges(
    size: int,
    device: torch.device,
    saliency: Path | None = None,
    features: Path | None = None,
    clip: Path | None = None,
    threads: int = 1,
    preset: Preset = "isnet",
    segmenter: Path | None = None,
) -> Judges:
    """Every network that a path was given for, and Lite0, on a device. preset: of a saliency network in ONNX.

    Raises FileNotFoundError, ValueError or ModuleNotFoundError with one sentence.
    """
    for path in filter(None, (saliency, features, clip, segmenter)):
        check_no_pickle(path)
    finders = {"saliency": saliency, "segmenter": segmenter}
    return Judges(
        load_lite0(device),
        size,
        device,
        {name: _open_finder(path, threads, preset, device) for name, path in finders.items() if path is not None},
        None if features is None else open_inception(features, device, threads),
        None if clip is None else open_clip(clip, device),
    )


def _open_finder(path: Path, threads: int, preset: Preset, device: torch.device) -> SaliencyModel:
    """What finds a subject: a SalientNet in a .safetensors file, or a network of others' in ONNX."""
    if path.suffix == ".safetensors":
        return load_salient(path, device)
    return saliency_model(path, threads, preset, device)


def open_inception(path: Path, device: torch.device, threads: int = 1) -> Features:
    """Clean-FID's features by InceptionV3: weights under pytorch-fid's names in a .safetensors, or an .onnx that gives
    (N, 2048) for pictures (N, 3, 299, 299) in [-1, 1]. Raises FileNotFoundError, or ValueError with a sentence.
    """
    check_no_pickle(path)
    check_regular(path, "the file of features")
    if path.suffix == ".onnx":
        return _onnx_inception(OnnxNetwork(path, threads, device))
    network, source = InceptionV3(), shown_path(path)
    targets = {name: x for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    fill_exactly(targets, inception_weights(read_tensors(path)[0], source), source)
    network = network.eval().requires_grad_(False).to(device)
    return lambda composites: network(clean_input(composites.to(device)))


def open_clip(path: Path, device: torch.device) -> Score:
    """CLIP score by transformers' files: a folder with model.safetensors, or such a file; reads config.json beside it.

    Raises FileNotFoundError, or ValueError with a sentence.
    """
    check_no_pickle(path)
    file = path / "model.safetensors" if path.is_dir() else path
    check_regular(file, "the file of CLIP")
    tensors, source = read_tensors(file)[0], shown_path(file)
    tensors = {name: x for name, x in tensors.items() if not name.endswith("position_ids")}  # what old versions saved
    beside = file.with_name("config.json")
    config = read_object(beside, "CLIP's config") if beside.is_file() else None
    network, tokenizer = build_clip(tensors, config, source), Tokenizer()
    fill_exactly(network.state_dict(), tensors, source)
    network.to(device)
    return lambda composites, captions: clip_score(network, composites, tokenizer(captions))


def check_no_pickle(path: Path) -> None:
    """Raise ValueError for a file that can run code when it is opened, with the line that converts it."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix.lower() in ENDINGS or (path.suffix != ".onnx" and start in PICKLES):
        raise ValueError(
            f"{shown_path(path)} is a pickle or TorchScript, which can run code when it is opened; give a .safetensors "
            "or .onnx file, which this makes of weights that you trust: python -c "
            f'"{CONVERT.format(path.name, path.stem)}"'
        )


def _onnx_inception(network: OnnxNetwork) -> Features:
    if network.size not in (None, (INPUT_SIZE, INPUT_SIZE)):
        raise ValueError(f"{network.file} must take pictures of {INPUT_SIZE} x {INPUT_SIZE}, it takes {network.size}")

    def features(composites: Tensor) -> Tensor:
        found = network(clean_input(composites))
        if found.flatten(1).shape != (len(composites), FEATURES):
            raise ValueError(f"{network.file} must give features of (N, {FEATURES}), it gave {tuple(found.shape)}")
        return found.flatten(1)

    features(torch.zeros(1, 3, 8, 8))  # a network of another kind is refused before anything slow
    return features

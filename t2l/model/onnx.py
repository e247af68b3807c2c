"""A user's ONNX network as a function of pictures: onnxruntime runs it, on the card where it can, else on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


class OnnxNetwork:
    """Pictures (N, 3, H, W) -> one of the file's outputs, the first if not told, (N, ...), float32 on the CPU.

    threads: of one call on the CPU. Raises ModuleNotFoundError without onnxruntime, ValueError for a file that is no
    network, or not one of one picture.
    """

    def __init__(self, file: Path, threads: int = 1, device: torch.device = CPU) -> None:
        self.file = file
        self._session = open_session(file, threads, device)
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None) and not isinstance(shape[1], str):
            found = ", ".join(f"{x.name} {list(x.shape)}" for x in inputs)
            raise ValueError(f"{file} must take one input, pictures of (N, 3, height, width); it takes {found}")
        if inputs[0].type not in KINDS:
            raise ValueError(f"{file} must take pictures of {' or '.join(KINDS)}; it takes {inputs[0].type}")
        self._input, self.outputs = inputs[0].name, [x.name for x in self._session.get_outputs()]
        self._dtype = KINDS[inputs[0].type]
        self._batch = shape[0] if isinstance(shape[0], int) else None
        if self._batch not in (None, 1):
            raise ValueError(f"{file} must take any number of pictures at once, or one; it takes {self._batch}")
        height, width = (n if isinstance(n, int) else None for n in shape[2:])
        self.size = None if height is None or width is None else (height, width)  # of its input; None: any

    def __call__(self, pictures: Tensor, output: int = 0) -> Tensor:
        parts = pictures.to("cpu", self._dtype).split(self._batch or len(pictures))
        name = self.outputs[output]
        outputs = [run_session(self._session, [name], {self._input: part.numpy()}, self.file)[0] for part in parts]
        return torch.cat([torch.from_numpy(output).float() for output in outputs])


KINDS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


def run_session(session: Any, outputs: Sequence[str] | None, inputs: Mapping[str, Any], file: Path) -> list[Any]:
    """What a session gives; its failures, which derive from nothing but Exception, as RuntimeError."""
    try:
        return session.run(outputs, inputs)
    except Exception as error:
        raise RuntimeError(f"{file} failed: {' '.join(str(error).split())[:300]}") from error


def open_session(file: Path, threads: int, device: torch.device) -> Any:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file.name} needs onnxruntime of the extra `eval`: run `pip install 'text2layer[eval]'`",
            name="onnxruntime",
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    broken = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented, state.InvalidArgument)
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except broken as error:
        raise ValueError(f"{file} is damaged or not an ONNX network: {error}") from error

"""A run folder: what a training run was asked for, what it measured, and what it needs to go on.

config.json            the config; another config in the same folder is refused
stats.jsonl            one line per logged step
state.pt               weights, EMA, optimiser, step: for resuming (replaced atomically)
snapshot.safetensors   EMA weights and config: for use
samples/               picture grids
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..config import config_to_dict


class Run:
    """Opens or continues the run folder of a config. Raises ValueError when it belongs to another config."""

    def __init__(self, folder: str | Path, config: Any) -> None:
        self.folder = Path(folder)
        self.samples = self.folder / "samples"
        self.snapshot = self.folder / "snapshot.safetensors"
        self._state = self.folder / "state.pt"
        self._stats = self.folder / "stats.jsonl"
        self.samples.mkdir(parents=True, exist_ok=True)
        self._keep_config({"class": type(config).__name__, **config_to_dict(config)})

    def _keep_config(self, values: dict[str, Any]) -> None:
        path = self.folder / "config.json"
        text = json.dumps(values, indent=2) + "\n"
        if not path.exists():
            _replace(path, text.encode())
            return
        before, now = json.loads(path.read_text()), json.loads(text)
        if changed := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
            raise ValueError(
                f"the run folder {self.folder} belongs to another config: {', '.join(changed)} differ; "
                "take another folder, or the config it was started with"
            )

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """The last saved state, or None at the start. Log lines written after it are dropped, they will come again."""
        if not self._state.exists():
            self._drop_stats_after(0)
            return None
        try:
            state = torch.load(self._state, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(
                f"{self._state} cannot be read ({error}); remove it to start this run again, its snapshot stays usable"
            ) from error
        self._drop_stats_after(state["step"])
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state atomically: a kill at any moment leaves the old one or the new one."""
        partial = self._state.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._state)

    def log(self, values: dict[str, float | int]) -> None:
        """Append one line to stats.jsonl; `step` is among the values."""
        with open(self._stats, "a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")

    def _drop_stats_after(self, step: int) -> None:
        if not self._stats.exists():
            return
        kept = []
        for line in self._stats.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):  # cut off by a kill
                break
            if json.loads(line)["step"] <= step:
                kept.append(line)
        _replace(self._stats, "".join(kept).encode())


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)

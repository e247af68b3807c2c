"""The names of the metrics in the JSON file, their standard errors, and the table of them for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .metrics import mean_metric, standard_error

# The keys of the JSON file, and what the figure should be. NAME_se beside a mean or a share is its standard error.
AUTOENCODER_METRICS = {
    "mask_iou": ">= 0.99",
    "mask_l1": "<= 0.008",
    "composite_psnr": ">= 25 dB",
    "foreground_psnr": ">= 27 dB",
    "visible_background_psnr": ">= 25 dB",
    "hidden_background_psnr": ">= 19 dB",
    "recompose_l1": "<= 0.02",
    "recompose_max": "",
}
PROBE_METRICS = {  # where the data names things and places
    "foreground_top1": ">= half of real",
    "foreground_top1_real": "",
    "foreground_top1_reconstruction": "",
    "background_top1": ">= half of real",
    "background_top1_real": "",
    "background_top1_reconstruction": "",
}
MASK_METRICS = {
    "mask_iou_saliency": ">= 0.885 (the paper)",
    "mask_iou_saliency_real": "",
}
FID_METRICS = {  # by Lite0; n = generated pictures
    "fid": "",  # n generated against all real ones
    "fid_real": "",  # its floor: n other real pictures in place of the generated
    "fid_reconstruction": "",
    "fid_equal": "down to fid_equal_real",  # n generated against the n real ones of the same captions
    "fid_equal_real": "",  # its floor: n other real pictures in place of the generated
}
OWN_METRICS = {  # by what the user brought
    "mask_iou_human": ">= 0.799 (the paper)",
    "mask_iou_segmenter": "up to mask_iou_segmenter_real",
    "mask_iou_segmenter_real": "",
    "clean_fid": "down to clean_fid_real",  # n against n
    "clean_fid_real": "",
    "clip": ">= 0.251 (the paper)",
    "clip_real": "",
}
GENERATION_METRICS = PROBE_METRICS | MASK_METRICS | FID_METRICS | OWN_METRICS


def with_errors(values: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The mean of every figure and, under NAME_se, its standard error where there is one."""
    found: dict[str, float | None] = {}
    for name, x in values.items():
        found[name] = mean_metric(x)
        if (error := standard_error(x)) is not None:
            found[f"{name}_se"] = error
    return found


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """The metrics as a Markdown table, one row each with what it should be; "-" where one was not measured.

    Behind a value stands its standard error. Metrics that the data set or the user brought nothing for have no row.
    """
    rows = ["| figure | value | wanted |", "|---|---|---|"]
    for part, names in (("autoencoder", AUTOENCODER_METRICS), ("generation", GENERATION_METRICS)):
        measured = metrics.get(part) or {}
        always = AUTOENCODER_METRICS if part == "autoencoder" else MASK_METRICS | FID_METRICS
        for name, wanted in names.items():
            if name in measured or name in always:
                rows.append(f"| {part}.{name} | {_cell(measured.get(name), measured.get(f'{name}_se'))} | {wanted} |")
    return "\n".join(rows)


def _cell(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"

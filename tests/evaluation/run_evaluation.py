"""An evaluation in a process of its own, with judges that see colours."""

import json

import torch
import torch.nn.functional as F


def evaluate_small(checkpoint, data, folder):
    """Every kind of figure, with the saliency network and masks, and the composites exported once more."""
    from t2l.evaluation import judges
    from t2l.evaluation.report import EvaluateConfig, EvaluateFiles, evaluate
    from t2l.generate import GenerateConfig

    judges.load_lite0 = lambda device: lambda pixels: F.adaptive_avg_pool2d(pixels, 4).flatten(1)
    judges.saliency_model = lambda path, *options: lambda x: (x.mean(dim=1, keepdim=True) > 0.5).float()
    judges.open_clip = lambda *_: lambda x, captions: x.mean(dim=(1, 2, 3)) + torch.tensor([len(c) for c in captions])
    config = EvaluateConfig(
        prompts=7,
        probe_examples=9,
        batch_size=2,
        saliency_count=5,
        saliency_real_count=3,
        generation=GenerateConfig(num_steps=2, sampler="ddim"),
    )
    files = EvaluateFiles(
        saliency="s.onnx",
        clip="c",
        masks=data / "masks",
        export=folder / "composites",
        samples=folder / "samples.png",
    )
    found = evaluate(checkpoint, data, folder / "figures.json", config, files, device="cpu")
    assert found["generation"] == json.loads((folder / "figures.json").read_text())["generation"]

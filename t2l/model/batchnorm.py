"""BatchNorm over the processes of a training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from .precision import at_least_float32


def make_batchnorm_global(network: nn.Module) -> None:
    """Replace every BatchNorm2d of a network by one over all processes, in place."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm2d.of(child))


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batch over all processes, on any device.

    torch's SyncBatchNorm needs a GPU. Statistics have float32 at least, results the input's dtype, as in BatchNorm2d.
    """

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> GlobalBatchNorm2d:
        """With the very parameters and buffers of an ordinary one."""
        assert module.affine and module.track_running_stats and module.momentum, (
            "the project's BatchNorms have all three"
        )
        ours = cls(module.num_features, eps=module.eps, momentum=module.momentum).train(module.training)
        ours.weight, ours.bias = module.weight, module.bias
        ours.running_mean, ours.running_var = module.running_mean, module.running_var
        ours.num_batches_tracked = module.num_batches_tracked
        return ours

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        mean = _global_mean(x.mean(dim=(0, 2, 3)))
        centred = x - mean.view(1, -1, 1, 1)
        variance = _global_mean(centred.square().mean(dim=(0, 2, 3)))
        self._track(mean.detach(), variance.detach(), count=dist.get_world_size() * x.numel() // x.shape[1])
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _global_mean(x: Tensor) -> Tensor:
    """The mean over all processes; so is its gradient, because what is minimised is the mean of their losses."""
    return all_reduce(x.contiguous()) / dist.get_world_size()

"""What every training is told, what the autoencoder's is told beside that, and what the UNet's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..config import check_ranges
from ..data.batches import BatchConfig
from ..data.crops import CropConfig
from ..diffusion import DiffusionConfig
from ..model.autoencoder import AutoencoderConfig
from ..model.discriminator import DiscriminatorConfig
from ..model.precision import Precision
from ..model.text_encoder import TextEncoderConfig
from ..model.unet import UNetConfig
from .losses import LossWeights


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training is told. CHANGES_NOTHING names what a run that goes on may have otherwise.

    Names are those diffusers and kohya's scripts share, but for num_steps: a config's place says which steps.
    """

    num_steps: int  # of the optimiser
    lr: float
    lr_warmup_steps: int = 100
    betas: tuple[float, ...] = (0.9, 0.99)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits: moments in a quarter of the memory (bitsandbytes)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    gradient_accumulation_steps: int = 1  # micro-batches that a process computes its samples in, to need less memory
    gradient_checkpointing: bool = False  # activations again in the backward pass: a third slower, far less memory
    compile: bool = False  # torch.compile: pays after some thousand steps
    precision: Precision = "auto"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    keep_every: int = 0  # steps between snapshots that are kept under a name of their own; 0 = only the last is
    tensorboard: bool = False  # write what is logged for TensorBoard too

    CHANGES_NOTHING: ClassVar[tuple[str, ...]] = tuple(
        "log_every save_every keep_every tensorboard gradient_checkpointing num_workers sample_prompts".split()
    )
    OLD_NAMES: ClassVar[dict[str, str]] = {
        "steps": "num_steps",
        "warmup": "lr_warmup_steps",
        "gradient_clip": "max_grad_norm",
        "accumulate": "gradient_accumulation_steps",
        "checkpointing": "gradient_checkpointing",
        "workers": "num_workers",
        "min_snr": "min_snr_gamma",
        "caption_drop": "cond_drop_prob",
    }

    def __post_init__(self) -> None:
        counts = ("num_steps", "gradient_accumulation_steps", "log_every", "save_every")
        check_ranges(self, **dict.fromkeys(counts, (1, 10**12)))


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainConfig(LoopConfig):
    """Everything that decides what a training run of the autoencoder gives."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    data: CropConfig = field(default_factory=CropConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    num_steps: int = 250_000
    lr: float = 4.5e-6
    scale_equivariance: float = 0.0  # share of steps that decode halved latents to halved pictures (EQ-VAE, 2502.09509)
    latent_noise: float = 0.0  # of noise on the latents before they are decoded, beside their own size (see `_noise`)
    fold_batchnorm: bool = False  # start from heads without BatchNorm: in small batches its statistics are noise
    freeze_encoder: bool = False  # train the decoder alone: latents made before stay valid
    num_workers: int = 1  # processes that read pictures, for each process that trains


@dataclass(frozen=True, kw_only=True)
class UNetTrainConfig(LoopConfig):
    """Everything that decides what a training run of the UNet gives."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    unet_from_scratch: bool = False  # of the checkpoint to start from, take only the text encoder
    frozen: tuple[str, ...] = ()  # parts that are not trained, e.g. text_encoder, unet.down_blocks
    lora_rank: int = 0  # train only matrices of this rank beside the UNet's attentions; 0 = train the UNet
    min_snr_gamma: float = 0.0  # of min-SNR weighting (Hang et al. 2023: 5); 0 = every t counts alike
    cond_drop_prob: float = 0.1  # share of samples that see the empty prompt, for classifier-free guidance
    keep_prob: float = 0.0  # share of samples that are told one of their layers (keep.py); needs input channels for it
    unknown_word: float = 0.01  # share of tokens replaced by one the vocabulary does not have
    num_steps: int = 75_000
    batch_size: int = 32  # of one optimiser step, over all processes
    lr: float = 1e-4
    weight_decay: float = 0.01
    sample_prompts: tuple[str, ...] = ()  # drawn at every save; none = some captions, held-out ones if there are any
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: weights, moments and EMA are spread over the processes
    system: str = "CaT2I-AE-SD"  # what the paper calls it; goes into every snapshot
    license: str = "Apache-2.0"  # of weights that start from nothing; others keep that of their start

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharding == "fsdp" and (self.precision == "fp16" or self.optimizer == "adamw8bit"):
            raise ValueError(
                f'sharding "fsdp" goes with precision bf16 or fp32 and optimizer "adamw", got {self.precision} and '
                f"{self.optimizer}"
            )

    @property
    def batches(self) -> BatchConfig:
        """How batches are drawn from latents."""
        names = ("seed", "batch_size", "cond_drop_prob", "unknown_word", "keep_prob")
        return BatchConfig(
            num_train_steps=self.diffusion.num_train_steps,
            keeps=self.unet.in_channels > self.unet.out_channels,
            **{name: getattr(self, name) for name in names},
        )

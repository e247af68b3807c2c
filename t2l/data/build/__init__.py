"""Flat pictures with captions become layered shards, the paper's LAION-L2I for anybody's pictures."""

from .build import Built, build
from .config import BuildConfig
from .stages import Models

__all__ = ["BuildConfig", "Built", "Models", "build"]

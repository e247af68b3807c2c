"""Flat pictures with captions become layered shards, the paper's LAION-L2I for anybody's pictures."""

from .build import Built, build
from .stages import BuildConfig, Models

__all__ = ["BuildConfig", "Built", "Models", "build"]

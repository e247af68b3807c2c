"""The demo data set: things everybody can name in places everybody can name, drawn from free packages."""

from .build import DemoConfig as DemoConfig
from .build import build_demo as build_demo

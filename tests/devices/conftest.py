"""Commands on the second device: whoever asks which device there is, is told that one."""

import sys

import pytest

from .second_device import second_device


@pytest.fixture
def second(monkeypatch):
    """The second device, as what every command picks."""
    with second_device() as there:
        for name, module in list(sys.modules.items()):
            if name.startswith("t2l.") and hasattr(module, "pick_device"):
                monkeypatch.setattr(module, "pick_device", lambda name="auto": there)
        yield there

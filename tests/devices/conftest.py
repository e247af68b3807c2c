"""Commands on the second device: whoever asks which device there is, is told that one."""

import sys

import pytest

from t2l.training.processes import Processes

from .second_device import second_device


@pytest.fixture
def second(monkeypatch):
    """The second device, as what every command picks."""
    with second_device() as there:
        for name, module in list(sys.modules.items()):
            if name.startswith("t2l.") and hasattr(module, "pick_device"):
                monkeypatch.setattr(module, "pick_device", lambda name="auto": there)
        begin = Processes.__init__

        def begin_there(self, *args, **kwargs):
            begin(self, *args, **kwargs)
            self.device = there

        monkeypatch.setattr(Processes, "__init__", begin_there)
        yield there

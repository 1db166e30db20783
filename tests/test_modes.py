"""A model that was put into evaluation mode for a while is as it was, part by part."""

from __future__ import annotations

import pytest
from suffuse.training.modes import evaluating
from torch import nn


def test_frozen_parts_stay_frozen():
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    model = nn.Sequential(frozen, nn.Dropout(0.5))
    assert model.training and not frozen.training
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise ZeroDivisionError
    assert model.training and model[1].training
    assert not any(part.training for part in frozen.modules())

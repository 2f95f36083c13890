"""What the tests of adapters share."""

import pytest
import torch


@pytest.fixture
def inference():
    """Seeded, and without gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield

"""One thread: the tests' tensors are tiny, and threads that wait for each other on a busy machine cost ten times more.

Set before torch is imported, and inherited by the processes that tests start.
"""

import os
import random

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers whichever tests ran before it."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)

"""Shared data, and a notebook shortened to one epoch."""

import os

import pytest
import torch

from utils import Loader, load_mnist

os.environ["EPOCHS"] = "1"  # the notebook's kernel inherits it


@pytest.fixture(scope="session")
def train_set():
    return load_mnist(train=True)


@pytest.fixture(scope="session")
def test_set():
    return load_mnist(train=False)


@pytest.fixture(scope="session")
def small_loaders(train_set, test_set):
    """A function that makes a training loader of 600 real images and an evaluation loader of 500."""

    def make(config):
        device = torch.device("cpu")
        return (Loader(train_set[0][:600], train_set[1][:600], config, device, train=True),
                Loader(test_set[0][:500], test_set[1][:500], config, device, train=False))

    return make

"""Shared data, and a notebook shortened to one epoch."""

import os

os.environ["EPOCHS"] = "1"  # the notebook's kernel inherits it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one file of tests runs on each core
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or threads would wait for those of another program, and spin

import pytest

from mnist import load_mnist


@pytest.fixture(scope="session")
def train_set():
    return load_mnist(train=True)


@pytest.fixture(scope="session")
def test_set():
    return load_mnist(train=False)

"""The kvpress process, started once for all tests."""

from __future__ import annotations

import pytest
from kvpress_help import PYTHON, Peer


@pytest.fixture(scope="session")
def kvpress(tmp_path_factory):
    """kvpress(model, tokens, calls, press, …) -> Reply: the same weights and tokens on the other side."""
    if not PYTHON.exists():
        pytest.skip("kvpress has no venv here; `make test-peers` makes it")
    peer = Peer(tmp_path_factory.mktemp("kvpress"))
    yield peer.ask
    peer.close()

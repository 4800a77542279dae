"""Two machines on one network, for tests that cut it."""

import pytest
from machines import MACHINES, Network


@pytest.fixture
def network(tmp_path):
    """Skips where the system cannot have such machines."""
    reason = Network.skip_reason()
    if reason is not None:
        pytest.skip(reason)
    with Network(tmp_path, *MACHINES) as made:
        yield made

"""How the tests are spread over processes."""

import pytest


@pytest.mark.xdist_group("ray")
def test_groups_stay_together(request):
    """pytest-xdist names the group in a test's id; with a pytest that it does not know it says nothing and has none."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@ray")

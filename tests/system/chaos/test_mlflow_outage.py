"""Short; what a single call does while MLflow hangs, refuses or loses its answer is in tests/pipeline/tracking/test_outbox.py."""

import pytest

from tests.system.chaos import mlflow_outage


@pytest.mark.system
@pytest.mark.parametrize("how", mlflow_outage.OUTAGES)
def test_an_outage_costs_nothing(how, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "")  # which the program sets for itself
    assert mlflow_outage.main(["--count", "1", "--seconds", "5", "--only", how]) == 0

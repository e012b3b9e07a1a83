"""The sound things that bad ones are made from, once for all tests here."""

from pathlib import Path

import pytest

# torch and MLflow take seconds to import, so the fixture that needs them does it.


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    from tests.bad_inputs.sound import make_sound

    return make_sound(tmp_path_factory.mktemp("sound"))

"""The data directory of the tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """A data directory of the tests' own, so that they neither need nor touch the user's."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLR_DATA_DIR", str(folder))
        yield folder

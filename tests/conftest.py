"""The data directory of the tests, and no time limits: what is slow on a busy machine is no failure."""

import os

# One run has one thread, so the tests' torch has too: two test processes of two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

EXAMPLES = 100 if os.environ.get("CI") else 30  # .ci/run tries more, and always the same
settings.register_profile("study", parent=settings(), deadline=None, max_examples=EXAMPLES)
settings.load_profile("study")


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that no process waits long for the last one's end."""
    long = ("test_study", "faults/", "test_site", "test_stacked", "test_rate_benchmark")
    items.sort(key=lambda item: not any(name in str(item.path) for name in long))


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Folders of the tests' own for data and their cache, so that they neither need nor touch the user's."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLR_DATA_DIR", str(folder))
        patch.setenv("CLR_CACHE_DIR", str(folder / ".cache"))
        yield folder

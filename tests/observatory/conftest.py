import pytest

from poyo_ssl.data.recording import open_recordings
from poyo_ssl.observatory import generate_observatory


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observatory") / "tiny"
    generate_observatory(folder, size="tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_recordings(tiny_folder):
    return open_recordings(tiny_folder)

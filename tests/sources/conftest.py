"""What tests of several sources share: whether Ray starts here."""

import os
import signal
import subprocess
import sys

import pytest

RAY_ANSWERS = """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
assert ray.get(ray.remote(lambda: 1).remote()) == 1
ray.shutdown()
"""


@pytest.fixture(scope="session")
def why_ray_fails(tmp_path_factory):
    """Start Ray once in a process of its own, which can be stopped; return what it said if it did not answer."""
    said, command = tmp_path_factory.mktemp("ray") / "ray.txt", [sys.executable, "-c", RAY_ANSWERS]
    with (
        said.open("w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env=os.environ | {"RAY_AUTH_MODE": "disabled"}
        ) as process,
    ):
        try:
            process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return "" if process.returncode == 0 else "".join(said.read_text().splitlines()[-1:]) or "no answer in 180 s"


@pytest.fixture
def ray_works(monkeypatch, request):
    """Skip where Ray cannot start its servers, as in some containers, where it may try for ever."""
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if reason := request.getfixturevalue("why_ray_fails"):
        pytest.skip(f"Ray does not start here: {reason}")

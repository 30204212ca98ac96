"""One finished study for all tests of the workflow: the real thing on a slice of CIFAR-10."""

from pathlib import Path

import pytest
from running import copy_project, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which config/test.yaml has run; tests put back what they change."""
    folder = tmp_path_factory.mktemp("study")
    copy_project(folder)
    result = run(folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return folder

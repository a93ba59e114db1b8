import shutil
from pathlib import Path

import pytest

from tests.audit.scenario import live
from tests.audit.stored import Stored


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The scenario's journal, on disk and closed. To be read, never changed."""
    stored = Stored(tmp_path_factory.mktemp("scenario") / "journal")
    live(stored.url).close()
    return stored


@pytest.fixture
def stored(whole: Stored, tmp_path: Path) -> Stored:
    """A copy to be spoiled."""
    return Stored(Path(shutil.copytree(whole.folder, tmp_path / "journal")))

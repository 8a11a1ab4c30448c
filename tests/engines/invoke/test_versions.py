"""Which invoke-training a result was made with."""

from pathlib import Path

import pytest

from training_worker.engines.invoke.versions import upstream_commit

pytestmark = pytest.mark.trainer


def test_upstream_s_commit_is_known_however_it_was_installed(tmp_path: Path) -> None:
    """From its repository, or from a folder that is a clone of it, and from neither."""
    git = tmp_path / "a clone/.git"
    (git / "refs/heads").mkdir(parents=True)
    here = {"url": (tmp_path / "a clone").as_uri(), "dir_info": {"editable": True}}
    assert "abc" == upstream_commit({"url": "https://host/repository", "vcs_info": {"commit_id": "abc"}})
    assert upstream_commit({}) is None
    assert upstream_commit(here) is None
    (git / "HEAD").write_text("def\n")
    assert "def" == upstream_commit(here)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nfee refs/heads/main\n")
    assert "fee" == upstream_commit(here)
    (git / "refs/heads/main").write_text("ace\n")
    assert "ace" == upstream_commit(here)

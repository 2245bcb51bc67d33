"""Files that are opened: what one is is looked at, not waited for."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from apex_creds.errors import UnsafePathError
from apex_creds.fs import private_files
from apex_creds.fs.private_files import Folder, NotDurableError, read_small

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX's kinds of files")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    tmp_path.chmod(0o700)
    with Folder(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "long"])
def test_only_small_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer would be waited for; a device never ends."""
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"x" * 11)
    with pytest.raises(UnsafePathError, match=r"not a regular file|longer than 10"):
        read_small(path, limit=10)


def test_a_socket_is_not_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "it"))
        with pytest.raises(OSError):  # noqa: PT011 - the kernel's own
            read_small(tmp_path / "it", limit=10)


def test_a_link_is_followed_where_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to("real")
    assert read_small(link, limit=10, follow=True) == b"content"
    with pytest.raises(OSError) as caught:  # noqa: PT011
        read_small(link, limit=10)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("call", ["replace", "unlink"])
@pytest.mark.parametrize("done", [True, False])
def test_a_failure_is_told_by_what_became_of_the_name(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, call: str, done: bool
) -> None:
    os.close(folder.create("a"))
    real = getattr(os, call)

    def fail(*args: object, **kwargs: object) -> None:
        if done:
            real(*args, **kwargs)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(private_files.os, call, fail)
    with pytest.raises(OSError, match="injected") as caught:
        folder.replace("a", "b") if call == "replace" else folder.unlink("a")
    assert isinstance(caught.value, NotDurableError) is done

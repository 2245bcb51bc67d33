"""Overwriting is done in place, after the new version is durable, and told honestly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_creds.fs.private_files import overwrite, overwrites_in_place
from apex_creds.storage import FileStorage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="unlinked open files"),
]


async def test_the_replaced_bytes_are_zeros(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    first = await storage.write("api_keys", b"secret" * 400_000, expected=None)
    old = os.open(tmp_path / "home/credentials/api_keys.enc", os.O_RDONLY)
    result = await storage.write("api_keys", b"new", expected=first.token, shred=True)
    assert os.pread(old, 3_000_000, 0) == bytes(2_400_000)
    os.close(old)
    sure = overwrites_in_place(tmp_path.stat().st_dev)
    assert result.shredded == ("overwritten" if sure else "unverifiable")
    await storage.close()


async def test_without_shred_they_are_left(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    first = await storage.write("api_keys", b"kept", expected=None)
    old = os.open(tmp_path / "home/credentials/api_keys.enc", os.O_RDONLY)
    await storage.write("api_keys", b"new", expected=first.token)
    assert os.pread(old, 10, 0) == b"kept"
    os.close(old)
    await storage.close()


async def test_a_hard_link_is_a_copy_that_remains(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    await storage.write("api_keys", b"kept", expected=None)
    os.link(tmp_path / "home/credentials/api_keys.enc", tmp_path / "backup")
    stored = await storage.read("api_keys")
    assert stored is not None
    result = await storage.write("api_keys", b"new", expected=stored.token, shred=True)
    assert result.shredded == "unverifiable"
    assert (tmp_path / "backup").read_bytes() == b"kept"
    await storage.close()


def test_what_can_not_be_overwritten_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    assert overwrite(fd) == "unverifiable"
    os.close(fd)


@pytest.mark.parametrize(
    ("tail", "answer"),
    [
        ("ext4 /dev/vda rw", True),
        ("ext3 /dev/vda rw,data=ordered", True),
        ("xfs /dev/sda1 rw,attr2", True),
        ("ext4 /dev/vda rw,data=journal", False),
        ("btrfs /dev/sda1 rw", False),
        ("overlay overlay rw", False),
        ("tmpfs tmpfs rw", False),
        ("f2fs /dev/sda rw", False),
        ("zfs pool rw", False),
        ("nfs4 host:/x rw", False),
        ("ext4", False),
    ],
)
def test_only_known_file_systems_overwrite_in_place(
    tmp_path: Path, tail: str, answer: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw\n22 1 254:0 / / rw,relatime shared:1 - {tail}\n")
    assert overwrites_in_place(os.makedev(254, 0), mounts=mounts) is answer


def test_an_unknown_device_is_not_trusted(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    assert not overwrites_in_place(os.makedev(254, 1), mounts=mounts)
    assert not overwrites_in_place(os.makedev(254, 0), mounts=tmp_path / "absent")

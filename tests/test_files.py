"""Files are replaced whole or not at all: permissions, links, devices, faults on the way, many threads."""

import os
import stat
import threading

import pytest

from refattn._files import replacing, write_whole


def test_a_new_file_has_the_permissions_of_any_and_an_old_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "text")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o600)
        write_whole(tmp_path / "new", "other")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def write_often(path):
    for _ in range(50):
        write_whole(path, "x")


def test_many_threads_leave_the_mask_of_permissions_alone(tmp_path):
    before = os.umask(0o022)
    try:
        threads = [
            threading.Thread(target=lambda i=i: [write_whole(tmp_path / str(i), "x") for _ in range(50)])
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
        assert len(list(tmp_path.iterdir())) == 8
    finally:
        after = os.umask(before)
    assert after == 0o022


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for text in ("one", "two"):
        write_whole(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == text
        assert os.listdir(tmp_path / "there") == ["file"]


def test_a_pipe_and_a_device_are_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole(tmp_path / "pipe", "through")
    reader.join()
    assert found == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_whole("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_whole("/dev/full", "text")


@pytest.mark.parametrize("place", ["folder", "missing/file", "file/below"])
def test_where_no_file_can_be_there_is_an_error_and_nothing_left(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=r"Is a directory|No such file|Not a directory"):
        write_whole(tmp_path / place, "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("fault", ["write", "fsync", "replace", "copymode"])
def test_a_fault_on_the_way_leaves_the_old_file_and_nothing_else(fault, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    if fault != "write":
        monkeypatch.setattr(f"refattn._files.{'shutil' if fault == 'copymode' else 'os'}.{fault}", fail)

    def write():
        with replacing(tmp_path / "file") as file:
            file.write(b"new")
            if fault == "write":
                fail()

    with pytest.raises(OSError, match="No space left"):
        write()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_names_as_long_as_names_can_be(tmp_path):
    write_whole(tmp_path / ("x" * 255), "text")
    assert os.listdir(tmp_path) == ["x" * 255]

"""The folder of what was compiled: whole or not there, and never in the way."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qloracle_gpu.compiling import store


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qloracle"


def writes(text, made=None):
    def make(folder):
        (folder / "file").write_text(text)
        if made is not None:
            made.append(text)

    return make


def test_a_folder_is_made_once(home):
    made = []
    first = store.kept("host", "a", writes("one", made))
    assert first == home / "host" / "a"
    assert store.kept("host", "a", writes("two", made)) == first
    assert store.kept("ptx", "a", writes("three", made)) != first
    assert made == ["one", "three"]
    assert (first / "file").read_text() == "one"


def test_an_error_keeps_nothing(home):
    def fails(folder):
        (folder / "half").write_text("")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.kept("host", "a", fails)
    assert list((home / "host").iterdir()) == []


def test_the_first_to_finish_wins(home):
    def slow(folder):
        (folder / "file").write_text("slow")
        store.kept("host", "a", writes("fast"))

    assert (store.kept("host", "a", slow) / "file").read_text() == "fast"
    assert [path.name for path in (home / "host").iterdir()] == ["a"]


def test_the_unused_is_forgotten_when_something_new_comes(home):
    old, used = (store.kept("host", name, writes(name)) for name in ("old", "used"))
    long_ago = time.time() - (store.UNUSED_DAYS + 1) * 24 * 3600
    for folder in (old, used):
        os.utime(folder, (long_ago, long_ago))
    assert store.kept("host", "used", writes("again")) == used
    assert old.is_dir()
    store.kept("host", "new", writes("new"))
    assert sorted(path.name for path in (home / "host").iterdir()) == ["new", "used"]
    assert (used / "file").read_text() == "used"


def test_a_cache_that_cannot_be_written_goes_with_the_process(tmp_path):
    (tmp_path / "file").write_text("")
    code = (
        "from qloracle_gpu.compiling import store\n"
        "made = []\n"
        "for _ in range(2): place = store.kept('host', 'a', made.append)\n"
        "print(place.is_dir(), len(made)); print(place)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    told, place = said.splitlines()
    assert told == "True 1"
    assert not Path(place).exists()

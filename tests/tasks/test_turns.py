from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import digests
from fewshot_blo.tasks.reading.decoded import (
    CacheError,
    MapError,
    decoded_once,
    read_decoded,
    write_decoded,
)
from fewshot_blo.tasks.reading.downloads import LOCK, downloaded_once
from fewshot_blo.tasks.reading.turns import turn

Images = Iterator[tuple[str, list[NDArray[np.uint8]]]]
IMAGES = np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 1, 4, 4)


class Decoder:
    """Decodes slowly, and counts how often; each thread stands for a process.

    A lock belongs to the open file, so that threads exclude each other as processes do.
    """

    def __init__(self, seconds: float = 0.2, failures: int = 0) -> None:
        self.calls, self._seconds, self._failures = 0, seconds, failures
        self._counting = threading.Lock()

    def __call__(self) -> Images:
        with self._counting:
            self.calls += 1
            call = self.calls
        for name, images in zip("ab", IMAGES, strict=True):
            time.sleep(self._seconds / 2)
            if call <= self._failures:
                raise DataError("this image cannot be decoded")
            yield name, list(images)


def load(root: Path, decode: Callable[[], Images], *, refresh: bool = False) -> ClassDataset:
    return decoded_once(root, "images", "key", (1, 4, 4), decode, refresh=refresh)


def together(count: int, work: Callable[[], ClassDataset]) -> list[ClassDataset]:
    """What several threads get that start at the same time."""
    ready = threading.Barrier(count)

    def start(_: int) -> ClassDataset:
        ready.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@pytest.fixture
def root(tmp_path: Path, own_cache_home: Path) -> Path:
    del own_cache_home
    return tmp_path / "data"


@pytest.mark.parametrize("refresh", [False, True])
def test_one_decodes_and_the_others_wait(
    root: Path, own_cache_home: Path, refresh: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if refresh:
        write_decoded(root, "images", "key", (1, 4, 4), [("old", np.zeros((1, 1, 4, 4), np.uint8))])
    decode = Decoder(seconds=1.0)
    for dataset in together(4, lambda: load(root, decode, refresh=refresh)):
        assert dataset.class_names == ("a", "b")
        assert (dataset.images.numpy() == IMAGES.reshape(6, 1, 4, 4)).all()
    assert decode.calls == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3
    assert all("waiting for" in line and line.endswith("decodes images") for line in said)
    names = sorted(path.name for path in own_cache_home.rglob("*") if path.is_file())
    assert names == ["images.bin", "images.json"]


def test_after_an_error_the_next_one_takes_over(root: Path) -> None:
    decode, found, errors = Decoder(failures=1), [], []

    def work() -> None:
        try:
            found.append(load(root, decode))
        except DataError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (decode.calls, len(found), len(errors)) == (2, 2, 1)


HOLDER = """
import sys, time
from pathlib import Path
from fewshot_blo.tasks.reading.turns import turn
with turn(Path(sys.argv[1]), "decodes images", told=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_turn_of_a_killed_process_is_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        killing = threading.Timer(0.3, holder.kill)
        killing.start()
        start = time.monotonic()
        with turn(path, "decodes images") as is_left:
            assert is_left
        assert time.monotonic() - start > 0.1
    assert f"waiting for process {holder.pid} on " in capfd.readouterr().err
    with turn(path, "decodes images") as is_left:
        assert not is_left
    assert not path.exists()


def test_without_locks_a_warning_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    decode = Decoder(seconds=0)
    with pytest.warns(UserWarning, match="without locks .*No locks.*each decodes images"):
        dataset = load(root, decode)
    assert (dataset.images.numpy() == IMAGES.reshape(6, 1, 4, 4)).all()
    assert decode.calls == 1


def test_a_folder_that_cannot_be_written_has_no_turns(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with turn(tmp_path / "file" / "lock", "decodes images") as is_left:
        assert not is_left


def test_a_cache_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="XDG_CACHE_HOME"):
        load(tmp_path, Decoder(seconds=0))


def test_an_interrupted_download_is_begun_again(tmp_path: Path) -> None:
    asked: list[bool] = []

    def fail(again: bool) -> None:
        asked.append(again)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        downloaded_once(tmp_path, "Omniglot", fail)
    assert (tmp_path / LOCK).exists()
    for _ in range(2):
        downloaded_once(tmp_path, "Omniglot", asked.append)
    assert asked == [False, True, False]
    assert not (tmp_path / LOCK).exists()


def test_one_downloads_and_the_others_wait(tmp_path: Path) -> None:
    fetched: list[int] = []

    def download(again: bool) -> None:
        assert not again
        if not fetched:
            time.sleep(0.2)
            fetched.append(1)

    with ThreadPoolExecutor(4) as pool:
        for future in [
            pool.submit(downloaded_once, tmp_path, "Omniglot", download) for _ in range(4)
        ]:
            future.result()
    assert fetched == [1]


@pytest.fixture
def stamped(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache that was found whole a while after it was written; the list counts the readings."""
    if not Path("/proc/sys/kernel/random/boot_id").is_file():
        pytest.skip("nothing tells one start of this machine from another")
    write_decoded(root, "images", "key", (1, 4, 4), zip("ab", map(list, IMAGES), strict=True))
    readings: list[int] = []

    class Counting(digests.Digests):
        def __init__(self) -> None:
            super().__init__()
            readings.append(1)

    monkeypatch.setattr(digests, "Digests", Counting)
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    return readings


def test_a_file_found_whole_is_not_read_again(
    root: Path, stamped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        assert read_decoded(root, "images", "key") is not None
    assert len(stamped) == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    assert read_decoded(root, "images", "key") is not None
    assert len(stamped) == 2
    monkeypatch.setattr(time, "time", lambda: now - 90_000)  # A clock that was set back.
    assert read_decoded(root, "images", "key") is not None
    assert len(stamped) == 3


@pytest.mark.usefixtures("stamped")
def test_a_changed_file_is_read_again(root: Path, own_cache_home: Path) -> None:
    assert read_decoded(root, "images", "key") is not None
    (path,) = own_cache_home.rglob("images.bin")
    with path.open("r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(0, 0))
    assert read_decoded(root, "images", "key") is None


@pytest.mark.parametrize("content", ["", "5", "{}", '{"file": 1, "at": "x", "sha256": "0"}'])
def test_a_damaged_stamp_is_no_stamp(
    root: Path, own_cache_home: Path, stamped: list[int], content: str
) -> None:
    assert read_decoded(root, "images", "key") is not None
    (path,) = own_cache_home.rglob(".images.whole")
    path.write_text(content)
    assert read_decoded(root, "images", "key") is not None
    assert len(stamped) == 2


def test_a_file_that_has_just_changed_is_not_stamped(root: Path, own_cache_home: Path) -> None:
    load(root, Decoder(seconds=0))
    assert read_decoded(root, "images", "key") is not None
    assert not list(own_cache_home.rglob(".images.whole"))


def test_a_map_that_is_refused_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root, Decoder(seconds=0))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("fewshot_blo.tasks.reading.decoded.mmap.mmap", refuse)
    with pytest.raises(MapError, match=r"images\.bin cannot be mapped, of .* GiB .*ulimit -v"):
        load(root, Decoder(seconds=0))


def test_a_lock_excludes_other_open_files(tmp_path: Path) -> None:
    """What the threads of these tests rely on."""
    path = tmp_path / "lock"
    with path.open("wb") as one, path.open("wb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

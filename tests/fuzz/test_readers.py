"""Every reader of files, fed with damaged copies of whole ones: each is read, or refused by one clear error.

Some 2,000 blind mutations, the same every time; `readers.py` runs the same targets under atheris.
"""

import os
import pickle
import resource
import struct

import numpy as np
import pytest
from readers import READERS, BrokenReaderError, Reader, feed, limit_memory, watch

MUTATIONS = 170
PICKLE = pickle.dumps(os.system)


@pytest.fixture
def little_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(4 << 30)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(rng, content):
    """One to three damages: a byte, a bit, a run cut out or doubled, a number made absurd, an end lost, a pickle."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, max(len(content), 1)))
        length = int(rng.integers(1, 40))
        match rng.integers(0, 8):
            case 0:
                content[at : at + 1] = rng.bytes(1)
            case 1 if content:
                content[at % len(content)] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + 8] = struct.pack("<Q", 1 << int(rng.integers(0, 64)))
            case 5:
                del content[at:]
            case 6:
                content[at : at + len(PICKLE)] = PICKLE
            case _:
                content[at:at] = str(10 ** int(rng.integers(0, 25))).encode()
    return bytes(content)


def with_what_they_need(names):
    """Readers by name, marked with the package they need."""
    needs = {name: READERS[name].needs for name in sorted(names)}
    return [pytest.param(name, marks=pytest.mark.needs(module) if module else ()) for name, module in needs.items()]


@pytest.mark.parametrize("name", with_what_they_need(READERS))
def test_damaged_files_are_read_or_refused(name, tmp_path, little_memory):
    reader, rng = READERS[name], np.random.default_rng(0)
    seeds = reader.seeds(tmp_path)
    for seed in seeds:
        feed(reader, tmp_path, seed)
    watch()
    for _ in range(MUTATIONS):
        feed(reader, tmp_path, mutate(rng, seeds[rng.integers(0, len(seeds))]))


@pytest.mark.parametrize("name", with_what_they_need(set(READERS) - {"heads"}))
def test_a_whole_file_is_read(name, tmp_path):
    assert feed(READERS[name], tmp_path, READERS[name].seeds(tmp_path)[0])


def _unpickles(folder, content):
    pickle.loads(PICKLE)


def _exhausts(folder, content):
    np.ones(1 << 40)


def _leaks(folder, content):
    raise KeyError("sha256")


def _warns(folder, content):
    np.log(np.zeros(1))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        pytest.param(_unpickles, "pickle.find_class", id="unpickles"),
        pytest.param(_exhausts, "memory ran out", id="exhausts memory"),
        pytest.param(_leaks, "KeyError came through", id="leaks an exception"),
        pytest.param(_warns, "RuntimeWarning came through", id="leaks a warning"),
    ],
)
def test_a_bad_reader_is_found(read, message, tmp_path, little_memory):
    watch()
    with pytest.raises(BrokenReaderError, match=message):
        feed(Reader(read, lambda _: []), tmp_path, b"")

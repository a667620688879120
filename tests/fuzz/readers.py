"""Every reader of files, fed with damaged ones: a result, or one clear error; nothing is executed, nothing exhausted.

    python tests/fuzz/readers.py TARGET [-runs=100000] [libFuzzer options]

runs one target under ``atheris`` (``pip install 'refattn[fuzz]'``), guided by coverage of refattn. The corpus is made
from whole files in a temporary folder. `test_readers.py` runs the same targets with blind mutations.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SEEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen")
"""Events of Python's audit hooks that no reader has a reason to raise."""


class BrokenReaderError(AssertionError):
    """A reader did something that no file may make it do."""


@dataclass(frozen=True)
class Reader:
    """A reader: how it is called with a file's content, whole files to begin with, and a package without which not."""

    read: Callable[[Path, bytes], Any]
    seeds: Callable[[Path], list[bytes]]
    needs: str | None = None


def feed(reader: Reader, folder: Path, content: bytes) -> bool:
    """Have the content read; return whether it was accepted. Any other outcome than these two raises."""
    _events.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(folder, content)
            accepted = True
    except (ValueError, OSError) as error:
        accepted = False
        if not str(error) or "\n" in str(error)[:200]:
            raise BrokenReaderError(f"no clear message: {error!r}") from error
    except MemoryError as error:
        accepted = False
        if "would be needed" not in str(error):
            raise BrokenReaderError(f"memory ran out before anything was refused: {error}") from error
    except Exception as error:
        raise BrokenReaderError(f"{type(error).__name__} came through: {error}") from error
    if _events:
        raise BrokenReaderError(f"a file made the reader do {_events[0]}")
    return accepted


_events: list[str] = []


@cache
def watch() -> None:
    """Note what a reader has no business doing, from now on."""
    sys.addaudithook(lambda event, _: _events.append(event) if event in SEEN else None)


def _put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _npz(folder: Path, content: bytes) -> Any:
    from refattn._npz import read_arrays

    return read_arrays(_put(folder, "arrays.npz", content), ("x", "y"))


def _npz_seeds(folder: Path) -> list[bytes]:
    from refattn._npz import write_arrays

    path = folder / "seed.npz"
    write_arrays(path, {"x": np.arange(6.0).reshape(2, 3), "y": np.zeros(0, np.int64)})
    whole = path.read_bytes()
    np.savez_compressed(path, x=np.zeros(9), y=np.ones(2))
    claim = b"'shape': (2, 3), "
    return [whole, path.read_bytes(), whole.replace(claim, b"'shape': (1<<62,)"[: len(claim)].ljust(len(claim)))]


def _cache(folder: Path, content: bytes) -> Any:
    from refattn.sparsek import SparseKCache

    loaded = SparseKCache.load(_put(folder, "cache.npz", content))
    if loaded.nbytes < 1 << 20:  # one that was accepted can be used
        state = loaded._state
        token = np.ones((*loaded._lead, state.keys.shape[-1]), state.keys.dtype)
        value = np.ones((*loaded._lead, state.values.shape[-1]), state.keys.dtype)
        loaded.step(token, token, value, np.ones(loaded._lead, state.keys.dtype))


def _cache_seeds(folder: Path) -> list[bytes]:
    from refattn.sparsek import SparseKCache

    seeds = []
    for hard in (False, True):
        made = SparseKCache(2, 2, hard=hard)
        x = np.random.default_rng(0).standard_normal((7, 2))
        made.prefill(x, x, x, x[:, 0])
        made.save(folder / "seed.npz")
        seeds.append((folder / "seed.npz").read_bytes())
    return seeds


def _wisdom(folder: Path, content: bytes) -> Any:
    from refattn._fft import import_wisdom

    return import_wisdom(_put(folder, "wisdom.json", content))


def _wisdom_seeds(folder: Path) -> list[bytes]:
    from refattn._fft import export_wisdom, rfft, set_planner_effort

    set_planner_effort("measure")
    try:
        rfft(np.ones((2, 96)), 96)
    finally:
        set_planner_effort("estimate")
    export_wisdom(folder / "seed.json")
    return [(folder / "seed.json").read_bytes(), b'{"fftw": ["", "", ""]}', b'{"fftw": [1, null, {}]}']


def _gguf(folder: Path, content: bytes) -> Any:
    from refattn.models.weights import read_gguf

    file = read_gguf(_put(folder, "weights.gguf", content))
    for name in file.records:
        file.tensor(name)


def _gguf_seeds(folder: Path) -> list[bytes]:
    import gguf

    path = folder / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_string("general.name", "tiny")
    writer.add_array("tokens", ["a", "b"])
    writer.add_array("kinds", [1, 2, 3])
    writer.add_tensor("w", np.ones((2, 3), np.float32))
    writer.add_tensor("h", np.ones((1, 4), np.float16))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    whole = path.read_bytes()
    return [whole, whole.replace((3).to_bytes(8, "little"), (1 << 62).to_bytes(8, "little"))]


def _safetensors(folder: Path, content: bytes) -> Any:
    from refattn.models.safetensors_file import read_safetensors

    return read_safetensors(_put(folder, "weights.safetensors", content))


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    whole = save({"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)})
    return [whole, (1 << 62).to_bytes(8, "little") + whole[8:]]


def _manifest(folder: Path, content: bytes) -> Any:
    from refattn.testing import load_vectors

    _put(folder, "few.npz", _few_vectors())
    _put(folder, "manifest.json", content)
    return load_vectors(folder)


def _few_vectors() -> bytes:
    from refattn.testing.vectors.files import archive_bytes

    return archive_bytes({"a.x": np.arange(3.0), "a.y": np.ones((1, 2))})


def _described(content: bytes) -> bytes:
    case = {"operation": "dense", "name": "a", "description": "", "options": {}, "inputs": ["x"], "results": ["y"]}
    described = {"sha256": hashlib.sha256(content).hexdigest(), "cases": [case]}
    return json.dumps({"schema": "refattn-vectors/1", "files": {"few.npz": described}}).encode()


def _vectors(folder: Path, content: bytes) -> Any:
    from refattn.testing import load_vectors

    _put(folder, "few.npz", content)
    _put(folder, "manifest.json", _described(content))  # whoever alters the file may alter the manifest
    return load_vectors(folder)


def _heads(folder: Path, content: bytes) -> Any:
    from refattn.testing.real_heads import load_real_heads

    _put(folder, "smollm2_shakespeare.npz", content)
    found = {"sha256": hashlib.sha256(content).hexdigest(), "arrays_sha256": "0" * 64}
    _put(folder, "smollm2_shakespeare.json", json.dumps(found).encode())
    return load_real_heads(folder=folder)


def _heads_seeds(folder: Path) -> list[bytes]:
    arrays = {name: np.ones((1, 1, 2, 2), np.float16) for name in ("q", "k", "v")}
    arrays |= {name: np.zeros(1, np.int32) for name in ("layers", "kv_heads", "tokens")}
    np.savez_compressed(folder / "seed.npz", **arrays)
    return [(folder / "seed.npz").read_bytes()]


def _heads_manifest(folder: Path, content: bytes) -> Any:
    from refattn.testing.real_heads import read_manifest

    _put(folder, "smollm2_shakespeare.json", content)
    return read_manifest(folder)


def _records(folder: Path, content: bytes) -> Any:
    from refattn.experiments.records import read_records

    return read_records(_put(folder, "records.jsonl", content)).rows()


def _records_seeds(folder: Path) -> list[bytes]:
    header = {
        "schema": "refattn-records/1", "experiment": "e", "question": "?", "version": "0", "sizes": [1], "items": 2,
        "timed": ["seconds"], "begun": "2026-01-01T00:00:00+00:00", "environment": {},
    }  # fmt: skip
    line = {"item": {"n": 1}, "seconds": 0.5, "records": [{"x": 1.5, "y": None, "z": "t"}]}
    return [f"{json.dumps(header)}\n{json.dumps(line)}\n".encode()]


def _scorer(folder: Path, content: bytes) -> Any:
    from refattn.models.scorer import FORMAT, read_scorer

    path = _put(folder, "scorer.npz", content)
    about = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    _put(folder, "scorer.json", json.dumps(about).encode())
    return read_scorer(path)


def _scorer_seeds(folder: Path) -> list[bytes]:
    from refattn.models.scorer import Scorer

    one = np.ones((1,), np.int64)
    Scorer(np.ones((1, 1, 2), np.float32), np.ones((1, 1), np.float32), one, one).save(folder / "seed.npz")
    return [(folder / "seed.npz").read_bytes()]


def _decomposed(folder: Path, content: bytes) -> Any:
    from refattn.decomposition import read_heads

    name = "own.npz" if content[:2] == b"PK" else "own.npy"
    count, heads = read_heads(_put(folder, name, content))
    return [one for one, _ in zip(heads, range(min(count, 3)), strict=False)]


def _decomposed_seeds(folder: Path) -> list[bytes]:
    q = np.arange(12.0).reshape(1, 6, 2)
    np.savez(folder / "seed.npz", q=q, k=q, v=q)
    np.savez_compressed(folder / "small.npz", h=np.tri(4))
    np.save(folder / "seed.npy", np.tri(5))
    return [(folder / name).read_bytes() for name in ("seed.npz", "small.npz", "seed.npy")]


def _tokens(folder: Path, content: bytes) -> Any:
    from refattn.training import open_tokens

    return open_tokens(_put(folder, "some.tokens", content)).tokens.sum()


def _tokens_seeds(folder: Path) -> list[bytes]:
    from refattn.training import ByteTokenizer, write_tokens

    write_tokens(folder / "seed.tokens", ["one", "two three"], ByteTokenizer())
    whole = (folder / "seed.tokens").read_bytes()
    return [whole, whole.replace(b'"tokens": 14', b'"tokens": 1e9')]


def _tokenizer(folder: Path, content: bytes) -> Any:
    from refattn.training.tokenizer import read_tokenizer

    return read_tokenizer(_put(folder, "tokenizer.json", content)).encode("to be")


def _tokenizer_seeds(folder: Path) -> list[bytes]:
    from refattn.training import ByteTokenizer, train_bpe

    return [train_bpe(["to be or not to be"], 260).text.encode(), ByteTokenizer().text.encode()]


def _checkpoint(folder: Path, content: bytes) -> Any:
    from refattn.training import AdamW, read_checkpoint

    parameters = {"x": np.ones((2, 3)), "y": np.ones(2, np.float32)}
    path = _put(folder, "checkpoint.safetensors", content)
    return read_checkpoint(path, parameters, AdamW(parameters), {"width": 3})


def _checkpoint_seeds(folder: Path) -> list[bytes]:
    from refattn.training import AdamW, write_checkpoint

    parameters = {"x": np.ones((2, 3)), "y": np.ones(2, np.float32)}
    write_checkpoint(folder / "seed.safetensors", parameters, AdamW(parameters), {"width": 3})
    return [(folder / "seed.safetensors").read_bytes()]


def _log(folder: Path, content: bytes) -> Any:
    from refattn.training import Log, read_log

    path = _put(folder, "log.jsonl", content)
    with Log(path, steps=2) as log:
        log.write({"step": 3, "loss": 1.0})
    assert read_log(path)[-1]["step"] == 3
    return read_log(_put(folder, "log.jsonl", content))


def _training(folder: Path, content: bytes) -> Any:
    from refattn.training.config import read_config

    return read_config(_put(folder, "training.toml", content)).identity()


_TRAINING = b"""steps = 3
data = {kind = "recall", n_pairs = 2}
model = {n_layers = 1, width = 8, n_heads = 2}
batch = {n = 16, rows = 2}
optimizer = {rate = 0.1}
"""


READERS = {
    "npz": Reader(_npz, _npz_seeds),
    "cache": Reader(_cache, _cache_seeds),
    "wisdom": Reader(_wisdom, _wisdom_seeds, needs="pyfftw"),
    "gguf": Reader(_gguf, _gguf_seeds, needs="gguf"),
    "safetensors": Reader(_safetensors, _safetensors_seeds, needs="safetensors"),
    "manifest": Reader(_manifest, lambda _: [_described(_few_vectors())]),
    "vectors": Reader(_vectors, lambda _: [_few_vectors()]),
    "heads": Reader(_heads, _heads_seeds),
    "heads-manifest": Reader(_heads_manifest, lambda _: [b'{"sha256": "00", "arrays_sha256": "00", "x": [1e9]}']),
    "records": Reader(_records, _records_seeds),
    "scorer": Reader(_scorer, _scorer_seeds),
    "decompose": Reader(_decomposed, _decomposed_seeds),
    "tokens": Reader(_tokens, _tokens_seeds),
    "tokenizer": Reader(_tokenizer, _tokenizer_seeds, needs="tokenizers"),
    "checkpoint": Reader(_checkpoint, _checkpoint_seeds, needs="safetensors"),
    "training-log": Reader(_log, lambda _: [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n{"st']),
    "training": Reader(_training, lambda _: [_TRAINING]),
}


def limit_memory(more: int = 2 << 30) -> None:
    """Let this process have no more than so many bytes beyond what it has: what asks for them fails at once."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(name: str, *options: str) -> None:
    """Run one target under atheris until its runs are over, or a file breaks it."""
    import atheris

    with atheris.instrument_imports(include=["refattn"]):
        import refattn.decomposition
        import refattn.experiments.records
        import refattn.models.scorer
        import refattn.models.weights
        import refattn.testing
        import refattn.training.config  # noqa: F401

    reader = READERS[name]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        folder, corpus = Path(place, "files"), Path(place, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds(folder)):
            (corpus / str(number)).write_bytes(seed)
            feed(reader, folder, seed)  # what is imported on the way is imported now
        watch()
        limit_memory()
        os.chdir(place)
        atheris.Setup(
            [sys.argv[0], *options, "-timeout=60", "-rss_limit_mb=2048", "-max_len=8192", str(corpus)],
            lambda content: feed(reader, folder, content),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

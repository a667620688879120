"""Run an experiment's items and keep what is finished, whatever happens (ours).

The records of an item are appended to ``DIR/NAME.jsonl`` as soon as it is finished, and flushed to the disk: a crash,
a kill or Ctrl-C loses the items in hand. The same call goes on from there. When every item is finished, the file is
written once more, in the order of the items, so that nothing in it tells where the run was interrupted or in which
order the workers worked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from refattn._files import append, exclusively, write_whole
from refattn._needs import missing, not_there
from refattn.experiments.experiment import Experiment, Item
from refattn.experiments.records import Records, Result, identity, new_header, read_records, result_line
from refattn.experiments.workers import Workers, elsewhere, here

Progress = Callable[[int, int], None]


class OtherRecordsError(ValueError):
    """A file that holds the records of something else."""


def run_experiment(
    experiment: Experiment,
    folder: str | os.PathLike[str],
    *,
    sizes: Sequence[int] | None = None,
    workers: Workers | None = None,
    on_item: Progress | None = None,
) -> Path:
    """Run the items that are not finished yet, and return the path of the records, complete.

    Parameters
    ----------
    experiment : Experiment
        What to run.
    folder : path
        Where ``NAME.jsonl`` is, or will be; made if missing.
    sizes : sequence of int, optional
        ``experiment.sizes`` by default.
    workers : Workers, optional
        `refattn.experiments.workers.local_workers` or `dask_workers`; by default this process.
    on_item : callable, optional
        ``on_item(finished, total)``, called at the beginning and after every item.

    Raises
    ------
    ModuleNotFoundError
        A module that the experiment needs is not installed.
    OtherRecordsError
        The file holds records of other sizes, another experiment, version or environment, or of items that the
        experiment does not have. Of fewer items it is gone on with.
    ValueError
        The file is damaged, or items or records are not what they have to be.
    BlockingIOError
        Another process is writing to it.
    OSError
        It cannot be written.
    refattn.experiments.workers.ItemFailedError
        An item could not be computed. Those finished before are kept.

    Examples
    --------
    >>> import tempfile
    >>> from refattn.experiments.conv import by_fft
    >>> path = run_experiment(by_fft.EXPERIMENT, tempfile.mkdtemp(), sizes=[100, 200])
    >>> path.name, len(path.read_text().splitlines())
    ('conv-by-fft.jsonl', 5)
    """
    absent = not_there(experiment.needs)
    if absent:
        raise missing(experiment.name, *absent)
    sizes = experiment.sizes if sizes is None else tuple(sizes)
    items = _distinct(experiment.items(sizes))
    path = Path(folder) / f"{experiment.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusively(path.with_suffix(".lock")):
        found = _begun(path, experiment, sizes, items)
        results = {identity(result.item): result for result in found.results}
        waiting = [item for key, item in items.items() if key not in results]
        if on_item is not None:
            on_item(len(results), len(items))
        end = found.end
        run = here(experiment.run, waiting) if workers is None else elsewhere(experiment.run, waiting, workers)
        with closing(run):
            for result in run:
                end = append(path, result_line(result).encode("utf-8"), at=end)
                results[identity(result.item)] = result
                if on_item is not None:
                    on_item(len(results), len(items))
        _write_in_order(path, found.header, [results[key] for key in items])
    return path


def _distinct(items: Sequence[Item]) -> dict[str, Item]:
    by_identity = {identity(item): item for item in items}
    if len(by_identity) < len(items):
        raise ValueError("items: some are equal, distinct ones were wanted")
    return by_identity


def _begun(path: Path, experiment: Experiment, sizes: Sequence[int], items: dict[str, Item]) -> Records:
    """Return what the file holds, after making it if there is none."""
    header = new_header(experiment, sizes, len(items))
    if not path.exists():
        write_whole(path, Records(header, ()).to_bytes())
    found = read_records(path)
    more = {"items": max(found.header["items"], len(items))}  # an experiment may have got more items since
    if difference := _difference({**found.header, **more}, header):
        raise OtherRecordsError(f"{path} holds other records: {difference}. Move it away, or choose another folder")
    if unknown := [result.item for result in found.results if identity(result.item) not in items]:
        raise OtherRecordsError(f"{path} holds an item that the experiment does not have: {unknown[0]}")
    if found.header["items"] < len(items):
        write_whole(path, Records({**found.header, **more}, found.results).to_bytes())
        found = read_records(path)
    return found


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Say in which way records under one header could not go on under the other."""
    for name in ("experiment", "version", "sizes", "items", "timed"):
        if found[name] != wanted[name]:
            return f"{name} {found[name]}, not {wanted[name]}"
    for name, ours in _basis(wanted["environment"]).items():
        theirs = _basis(found["environment"]).get(name)
        if theirs != ours:
            return f"computed with {name} {theirs}, not {ours}"
    return ""


def _basis(environment: dict[str, Any]) -> dict[str, Any]:
    """What numbers may depend on."""
    packages, machine, fft = (environment.get(name) or {} for name in ("packages", "machine", "fft"))
    return {
        "Python": environment.get("python"),
        **{name: packages.get(name) for name in ("numpy", "scipy", "numba", "pyfftw")},
        "FFT": fft.get("backend"),
        "processor": machine.get("cpu"),
    }


def _write_in_order(path: Path, header: dict[str, Any], results: list[Result]) -> None:
    content = Records(header, tuple(results)).to_bytes()
    if path.read_bytes() != content:
        write_whole(path, content)

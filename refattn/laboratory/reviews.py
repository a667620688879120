"""Sentences of film reviews with ratings, read from the source archive of the package ``vaderSentiment``.

The 10,605 sentences are of reviews on Rotten Tomatoes (Pang and Lee 2005), each rated by people from −4 to 4 (Hutto and
Gilbert 2014, ICWSM). The package is under the MIT licence; of the sentences, which are their authors', its archive says
no more than that the paper is to be cited. They are read where they lie, and never shipped. The wheel has not got them:

    python -m pip download --no-binary :all: --no-deps vaderSentiment==3.3.2

puts the archive into the current folder, where it is looked for, unless ``REFATTN_REVIEWS`` says where it is.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from refattn._files import sha256_of
from refattn._validation import as_count

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
DOWNLOAD = "python -m pip download --no-binary :all: --no-deps vaderSentiment==3.3.2"
VARIABLE = "REFATTN_REVIEWS"
MEMBERS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)
"""The archive within the archive, and the file in that."""

CLEAR = 1.0
"""Ratings of at least this size count as clear (ours): 9 sentences of 10 have one."""


class Review(NamedTuple):
    """A sentence, and the mean of its ratings."""

    text: str
    rating: float


class Parts(NamedTuple):
    """Disjoint sentences with clear ratings, in each part one positive, one negative, and so on."""

    demonstrations: list[Review]
    development: list[Review]
    training: list[Review]
    test: list[Review]


def reviews_path() -> Path:
    """Return where the archive is to be; whether it is there is not looked at."""
    return Path(os.environ.get(VARIABLE) or ARCHIVE)


def read_reviews(path: Path) -> list[Review]:
    """Return all sentences of the archive in their order; of those that come twice, the last.

    Raises
    ------
    FileNotFoundError
        There is no such file; the message has the command that fetches it.
    ValueError
        It is another file: its SHA-256 differs.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, the archive with the film reviews was wanted: {DOWNLOAD} puts it into the current"
            f" folder; elsewhere, {VARIABLE} says where it is"
        )
    with path.open("rb") as file:
        found = sha256_of(file)
        if found != SHA256:
            raise ValueError(f"{path}: SHA-256 {found} came, {SHA256} was wanted: {DOWNLOAD}")
        file.seek(0)
        lines = _members(file, MEMBERS).decode("utf-8").splitlines()
    last: dict[str, float] = {}
    for line in lines:
        _, rating, text = line.split("\t")
        last.pop(text, None)
        last[text] = float(rating)
    return [Review(text, rating) for text, rating in last.items()]


def _members(file: IO[bytes], names: Sequence[str]) -> bytes:
    """Return what a member of a member of an archive holds."""
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        member = archive.extractfile(names[0])
        if member is None:
            raise ValueError(f"{names[0]}: a file was wanted")
        return _members(member, names[1:]) if names[1:] else member.read()


@cache
def reviews() -> tuple[Review, ...]:
    """Return all sentences."""
    return tuple(read_reviews(reviews_path()))


def split(some: Sequence[Review], n_test: int, *, seed: int = 0) -> Parts:
    """Return disjoint parts, half of each positive and half negative, drawn at random; a test part of n sentences.

    What is drawn for the other parts, and the order within the test part, do not depend on its length.

    >>> parts = split([Review(str(i), 2.0 * (-1) ** i) for i in range(3000)], 20)
    >>> [len(part) for part in parts], sum(review.rating > 0 for review in parts.test)
    ([16, 200, 1000, 20], 10)
    """
    as_count("n_test", n_test, least=2)
    sizes = (16, 200, 1000)
    clear = [review for review in some if abs(review.rating) >= CLEAR]
    order = np.random.default_rng(seed).permutation(len(clear))
    sides = [[clear[i] for i in order if (clear[i].rating > 0) is positive] for positive in (True, False)]
    most = 2 * min(map(len, sides)) - sum(sizes)
    if n_test % 2 or n_test > most:
        raise ValueError(f"n_test: {n_test} came, an even number of sentences up to {most - most % 2} was wanted")
    mixed = [review for pair in zip(*sides, strict=False) for review in pair]
    ends = np.cumsum((0, *sizes, n_test)).tolist()
    return Parts(*(mixed[begin:end] for begin, end in pairwise(ends)))

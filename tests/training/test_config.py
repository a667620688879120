"""A configuration is read key by key; what is wrong is named with what was wanted."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest

from refattn.training import read_log

config_module = pytest.importorskip("refattn.training.config", exc_type=ImportError)

GOOD = {
    "steps": 6,
    "data": {"kind": "recall", "n_pairs": 2},
    "model": {"n_layers": 1, "width": 8, "n_heads": 2},
    "batch": {"n": 16, "rows": 4},
    "optimizer": {"rate": 0.01},
}


def changed(**changes):
    """Return the good configuration with values set, or taken out by None; ``a__b`` is key b of section a."""
    found = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__widht": 3}, "model.widht: an unknown key came, one of family, n_layers, width, .* was wanted"),
        ({"stepz": 1}, "stepz: an unknown key came, one of steps, seed, .* was wanted"),
        ({"data__n_paris": 1}, "data.n_paris: an unknown key came, one of kind, n_pairs, .*"),
        ({"steps": None}, "steps: is missing"),
        ({"data__kind": None}, "data.kind: is missing"),
        (
            {"data__kind": "bible"},
            "data.kind: 'bible' came, one of 'files', 'package', .* was wanted",
        ),
        ({"steps": "many"}, "steps: 'many' came, .*integer was wanted"),
        ({"steps": True}, "steps: True came"),
        ({"steps": 0}, "steps: 0 came, greater than or equal to 1"),
        ({"steps": 2.0}, "steps: 2.0 came"),
        ({"optimizer__rate": float("nan")}, "optimizer.rate: nan came"),
        ({"model__width": 9}, "model.n_heads: 2 came, a divisor of the width 9 was wanted"),
        ({"model__n_heads": 8}, "model.n_heads: 8 came, heads of an even width were wanted"),
        ({"model__n_kv_heads": 3}, "model.n_kv_heads: 3 came, a divisor of the 2 heads was wanted"),
        ({"batch__accumulate": 3}, "batch.accumulate: 3 came, a divisor of the 4 rows was wanted"),
        ({"optimizer__warmup": 6}, "optimizer.warmup: 6 came, below the 6 steps was wanted"),
        ({"optimizer__least_rate": 1.0}, "optimizer.least_rate: 1.0 came, at most the rate 0.01"),
        ({"model__family": "gpt2", "model__rope_base": 1e4}, "model.rope_base: 10000.0 came, none was wanted"),
        ({"model__family": "gpt2", "model__n_kv_heads": 1}, "model.n_kv_heads: 1 came, as many as heads"),
        ({"attention__kind": "window"}, "attention.window: is missing"),
        ({"attention__kind": "sparsek", "attention__n_select": 4, "attention__gate": "q"}, "attention.gate: 'q' came"),
        ({"data": {"kind": "package", "package": "essays", "vocab_size": 300}}, "data.vocab_size: 300 came, none was"),
        (
            {"data__curriculum": [{"n": 8, "n_pairs": 1, "rows": 4, "steps": 6}]},
            "data.curriculum: 6 steps came, below the 6 steps was wanted",
        ),
        (
            {"data__curriculum": [{"n": 8, "n_pairs": 1, "rows": 3, "steps": 2}], "batch__accumulate": 2},
            "data.curriculum.rows: 3 came, a multiple of accumulate, 2,",
        ),
        (
            {"attention": {"kind": "hashing", "n_buckets": 3, "chunk": 1}},
            "attention.n_buckets: 3 came, a multiple of 2",
        ),
        ({"model__widht": 3, "stepz": 1}, "model.widht: .*; stepz: "),
    ],
)
def test_a_wrong_key_or_value_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        config_module.as_config(changed(**changes))


def test_a_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "mine.toml"
    for text, message in (("steps = ", "not TOML"), ("steps = 1", "data: is missing"), ("\xff", "")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"mine\.toml: .*{message}"):
            config_module.read_config(path)


@pytest.mark.needs("safetensors")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__family": "gpt2", "model__dtype": "float64", "batch__accumulate": 2},
        {"data": {"kind": "passkeys"}, "recompute": True, "model__tied": False},
        {"optimizer__clip": 0.0, "model__n_kv_heads": 1},
        {"attention": {"kind": "window", "window": 4, "sinks": 1}},
        {"attention": {"kind": "sparsek", "n_select": 3, "window": 3, "hard": True}},
        {"attention": {"kind": "sparsek", "n_select": 3, "gate": "none"}},
        {"data__curriculum": [{"n": 8, "n_pairs": 1, "rows": 8, "steps": 2}]},
        {"attention": {"kind": "hashing", "n_buckets": 2, "chunk": 2}},
    ],
    ids=["recall", "gpt2", "passkeys", "no clipping", "window", "sparsek", "no gate", "curriculum", "hashing"],
)
def test_a_configuration_trains_and_goes_on(changes, tmp_path):
    from refattn.training.assembly import assemble, train

    config = config_module.as_config(changed(**changes, output={"save_every": 3, "evaluate_every": 2}))
    outcome = train(config, tmp_path / "a")
    assert outcome.steps == 6
    assert [line["step"] for line in read_log(tmp_path / "a" / "log.jsonl") if "held_out_loss" in line] == [2, 4, 6]
    assert train(config, tmp_path / "a").last == outcome.last
    again = assemble(config, tmp_path / "a").trainer
    for _ in range(6):
        last = again.advance()
    assert last.loss == outcome.last["loss"]
    assert again.model.dtype == np.dtype(config.model.dtype)


@pytest.mark.needs("safetensors")
def test_a_checkpoint_of_another_configuration_is_refused_but_output_may_differ(tmp_path):
    from refattn.training.assembly import train

    train(config_module.as_config(changed()), tmp_path)
    train(config_module.as_config(changed(output={"save_every": 1})), tmp_path)
    with pytest.raises(ValueError, match=r"another training: model\.width: 8 came, 16 was wanted"):
        train(config_module.as_config(changed(model__width=16)), tmp_path)


@pytest.mark.needs("safetensors")
def test_texts_train_from_files_beside_the_configuration(tmp_path):
    from refattn.training.assembly import train

    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"text {number}: " + "to be or not to be, " * 5, encoding="utf-8")
    data = {"kind": "files", "files": ["*.txt"], "held_out": 0.2}
    config = config_module.as_config(changed(data=data))
    assert train(config, tmp_path / "run", texts=tmp_path).steps == 6
    (tmp_path / "0.txt").write_text("another text altogether", encoding="utf-8")
    with pytest.raises(ValueError, match=r"another training: corpus: .* came"):
        train(config, tmp_path / "run", texts=tmp_path)
    with pytest.raises(ValueError, match=r"data\.files: '\*\.md' came"):
        train(config_module.as_config(changed(data={**data, "files": ["*.md"]})), tmp_path / "b", texts=tmp_path)
    with pytest.raises(ValueError, match=r"batch\.n: 5000 came, below the \d+ training tokens"):
        train(config_module.as_config(changed(data=data, batch__n=5000)), tmp_path / "c", texts=tmp_path)


def test_an_attention_is_made_as_it_is_asked_for_and_what_it_refuses_is_said(tmp_path):
    from refattn.training.assembly import assemble

    asked = {"kind": "conv", "n_basis": 3, "probe": 2, "delta": 0.5, "gradient": "attention"}
    made = assemble(config_module.as_config(changed(attention=asked)), tmp_path).trainer.attention
    assert type(made).__name__ == "ConvAttention"
    assert made.gradient == "attention"
    made = assemble(config_module.as_config(changed(attention={"kind": "lowrank", "error": 0.1})), tmp_path)
    assert made.trainer.attention.error == 0.1
    config = config_module.as_config(changed(attention={"kind": "conv"}))
    with pytest.raises(ValueError, match="attention: starts, n_basis: "):
        assemble(config, tmp_path)


@pytest.mark.parametrize(
    ("asked", "name", "held"),
    [
        ({"kind": "strided", "stride": 3}, "StridedAttention", {"stride": 3}),
        ({"kind": "fixed", "block": 4, "summaries": 2}, "FixedAttention", {"block": 4, "summaries": 2}),
        (
            {"kind": "random-blocks", "block": 2, "n_window": 3, "n_random": 0, "n_global": 2, "seed": 5},
            "RandomBlockAttention",
            {"block": 2, "n_window": 3, "n_random": 0, "n_global": 2, "seed": 5},
        ),
        (
            {"kind": "hashing", "n_buckets": 4, "chunk": 2, "rounds": 3, "seed": 5},
            "HashingAttention",
            {"n_buckets": 4, "chunk": 2, "rounds": 3, "seed": 5},
        ),
        (
            {"kind": "routing", "n_clusters": 4, "members": 2, "decay": 0.5, "seed": 5},
            "RoutingAttention",
            {"n_clusters": 4, "members": 2, "decay": 0.5, "seed": 5},
        ),
        ({"kind": "hashing", "chunk": 2}, "HashingAttention", {"n_buckets": None, "chunk": 2}),
        ({"kind": "routing", "members": 2}, "RoutingAttention", {"n_clusters": None, "members": 2}),
        ({"kind": "linear"}, "LinearAttention", {"features": "elu", "rank": None}),
        ({"kind": "linear", "features": "random", "rank": 3}, "LinearAttention", {"features": "random", "rank": 3}),
    ],
)
def test_every_number_of_an_attention_reaches_it(asked, name, held, tmp_path):
    from refattn.training.assembly import assemble

    made = assemble(config_module.as_config(changed(attention=asked)), tmp_path).trainer.attention
    assert type(made).__name__ == name
    assert {key: getattr(made, key) for key in held} == held


def test_a_curriculum_is_taken_lesson_by_lesson(tmp_path):
    from refattn.training.assembly import assemble

    lessons = [{"n": 8, "n_pairs": 1, "rows": 2, "steps": 2}, {"n": 12, "n_pairs": 2, "rows": 6, "steps": 1}]
    config = config_module.as_config(changed(data__curriculum=lessons))
    batches = assemble(config, tmp_path).trainer.batches
    whole = (config.batch.rows, config.batch.n)
    assert [batches(step).tokens.shape for step in range(5)] == [(2, 8), (2, 8), (6, 12), whole, whole]
    plain = assemble(config_module.as_config(changed()), tmp_path).trainer.batches
    assert np.array_equal(batches(4).tokens, plain(4).tokens)
    assert [int(batches(step).weights.sum()) for step in range(3)] == [2, 2, 12]


def test_every_key_stands_on_its_page():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "train-a-model.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    sections = [one for one in vars(config_module).values() if hasattr(one, "model_fields")]
    assert {key for section in sections for key in section.model_fields} <= described

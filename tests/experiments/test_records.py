"""What a file of records may hold, and what is refused."""

import json
from importlib.resources import files

import pytest

from refattn.experiments import catalogue
from refattn.experiments.records import MOST_BYTES, Result, read_records, result_line
from refattn.experiments.runner import run_experiment

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="needs the extra 'test'")

SCHEMA = json.loads((files("refattn.experiments") / "schema" / "records.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def path(toy, tmp_path):
    return run_experiment(toy.TOY, tmp_path, sizes=[3])


def test_the_schema_is_one_and_every_line_satisfies_it(path):
    assert jsonschema_rs.meta.is_valid(SCHEMA)
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4
    for line in lines:
        validator.validate(line)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line | {"seconds": -1},
        lambda line: line | {"extra": 1},
        lambda line: line | {"item": {"a": [1]}},
        lambda line: line | {"records": {}},
        lambda line: {"item": line["item"], "seconds": 1.0},
    ],
    ids=["negative time", "extra field", "nested item", "records no list", "no records"],
)
def test_schema_and_reader_refuse_the_same(path, spoil):
    header, first, *rest = path.read_text(encoding="utf-8").splitlines()
    wrong = spoil(json.loads(first))
    assert not jsonschema_rs.Draft202012Validator(SCHEMA).is_valid(wrong)
    path.write_text("\n".join([header, json.dumps(wrong), *rest]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: "):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"item": {}, "seconds": NaN, "records": []}', "NaN is not JSON"),
        (b'{"item": {}, "seconds": 1e999, "records": []}', "seconds: inf came"),
        (b'{"item": {"a": -Infinity}, "seconds": 0, "records": []}', "-Infinity is not JSON"),
        (b'{"item": {"a": 1e999}, "seconds": 0, "records": []}', "'a': inf came"),
        (b'{"item": {"a": 1}, "seconds": true, "records": []}', "seconds: True came"),
        (b'{"item": {"a": 1}, "seconds": 1' + b"0" * 400 + b', "records": []}', "too large"),
        (b"[" * 100_000, "not JSON"),
        (b'{"item": {"a": ' + b"1" * 5000 + b'}, "seconds": 0, "records": []}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"\x00" * 20, "not JSON"),
        (b"[]", "list came"),
        (b" " * (MOST_BYTES + 1), "longer than"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:40]),
)
def test_garbage_is_refused_with_the_line(path, line, message):
    header, first, *rest = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, first, line, *rest]) + b"\n")
    with pytest.raises(ValueError, match=f"line 3: .*{message}"):
        read_records(path)


def test_an_item_twice_and_more_results_than_items_are_refused(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="line 5: the item has a line already"):
        read_records(path)
    path.write_bytes(b"".join([*lines, lines[1].replace(b'"place": 0', b'"place": 9')]))
    with pytest.raises(ValueError, match="at most 3"):
        read_records(path)


def test_what_cannot_be_read_again_is_not_written():
    with pytest.raises(ValueError, match="at most"):
        result_line(Result({"a": 1}, 0.0, ({"text": "x" * MOST_BYTES},)))
    with pytest.raises(ValueError, match="list came"):
        result_line(Result({"a": 1}, 0.0, ({"list": [1]},)))


def test_rows_have_the_item_before_the_record(path):
    row = read_records(path).rows()[1]
    assert list(row) == ["place", "seed", "which", "number", "seconds"]
    assert row["place"] == 0
    assert row["which"] == 1


@pytest.mark.slow
def test_two_runs_give_the_same_but_for_times_and_clock(tmp_path):
    experiment = catalogue.load("conv-by-fft")
    first, second = (
        read_records(run_experiment(experiment, tmp_path / name, sizes=[100, 300])) for name in ("first", "second")
    )
    assert first.reproducible() == second.reproducible()
    assert [row["seconds"] for row in first.rows()] != [row["seconds"] for row in second.rows()]


def test_every_experiment_of_the_catalogue_has_distinct_items():
    for name in catalogue.MODULES:
        experiment = catalogue.load(name)
        for sizes in (experiment.sizes, experiment.quick_sizes):
            items = experiment.items(sizes)
            assert items, name
            assert len({json.dumps(item, sort_keys=True) for item in items}) == len(items), name


def test_an_unknown_experiment_is_refused_by_name():
    with pytest.raises(ValueError, match="conv-by-fft"):
        catalogue.load("no-such")

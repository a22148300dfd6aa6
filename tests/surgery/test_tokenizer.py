"""A tokenizer without some tokens: the same tokens where all of them stay, and no text that it cannot read."""

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_mabprune.surgery.tokenizer import check_tokenizer, cut_tokenizer, kept_tokens
from tests.small_tokenizers import FOREIGN, KINDS, SPECIAL, small_tokenizer, texts
from tests.tasks.tiny_tasks import make_tokenizer

CORPUS, OTHERS = texts(12), texts(200)[12:]


def cut_to(tokenizer: PreTrainedTokenizerFast, corpus: list[str]) -> tuple[PreTrainedTokenizerFast, dict[int, int]]:
    """The tokenizer with the tokens of some texts, and the new ids of those that stay."""
    used = {number for ids in tokenizer(corpus)["input_ids"] for number in ids}
    ids = {number: place for place, number in enumerate(kept_tokens(tokenizer, used))}
    return cut_tokenizer(tokenizer, ids), ids


@pytest.mark.parametrize("kind", KINDS)
def test_texts_whose_tokens_all_stay_are_cut_into_the_same_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(kind)
    smaller, ids = cut_to(tokenizer, CORPUS)
    assert len(smaller) == len(ids) < len(tokenizer)
    smaller.save_pretrained(tmp_path)
    for cut in (smaller, AutoTokenizer.from_pretrained(tmp_path)):
        for text in CORPUS:
            assert cut(text)["input_ids"] == [ids[number] for number in tokenizer(text)["input_ids"]]
            assert cut.tokenize(text) == tokenizer.tokenize(text)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"])
def test_classes_that_make_their_tokenizers_anew_read_what_was_cut(name: str, tmp_path: Path) -> None:
    kind = {"GPT2Tokenizer": "byte-level", "LlamaTokenizer": "byte-fallback"}.get(name, "unigram")
    model = json.loads(small_tokenizer(kind).backend_tokenizer.to_str())["model"]
    special = ["<s>", "<pad>", "</s>", "<unk>"] if name == "XLMRobertaTokenizer" else ["<pad>", "</s>", "<unk>"]
    if kind == "unigram":
        made = {"vocab": [*((token, 0.0) for token in special), *map(tuple, model["vocab"][len(SPECIAL) :])]}
    else:
        made = {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
    tokenizer = getattr(transformers, name)(**made)
    smaller, ids = cut_to(tokenizer, CORPUS)
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer) and again.get_vocab() == smaller.get_vocab()
    assert len(again) < len(tokenizer)
    for text in CORPUS:
        assert again(text)["input_ids"] == [ids[number] for number in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_read_and_written_as_before(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    smaller, _ = cut_to(tokenizer, CORPUS)
    more = 0
    for text in [*OTHERS, *FOREIGN]:
        before, after = tokenizer(text)["input_ids"], smaller(text)["input_ids"]
        unknown = before.count(tokenizer.unk_token_id)
        assert after.count(smaller.unk_token_id) <= unknown
        if not unknown or kind != "unigram":  # which joins neighbours that are unknown
            assert smaller.decode(after) == tokenizer.decode(before)
        more += len(after) - len(before)
    assert more > 0


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_stay_and_frame_texts_under_their_new_ids(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    smaller, ids = cut_to(tokenizer, ["ka"])
    for name in SPECIAL:
        assert smaller.convert_tokens_to_ids(name) == ids[tokenizer.convert_tokens_to_ids(name)]
    pair = smaller("ka", "lo")
    assert smaller.convert_ids_to_tokens(pair["input_ids"])[0] == "[CLS]"
    assert pair["input_ids"].count(smaller.sep_token_id) == 2
    assert (pair["token_type_ids"][0], pair["token_type_ids"][-1]) == (0, 1)
    padded = smaller(["ka", "ka ka ka ka"], padding=True)["input_ids"]
    assert padded[0][-1] == smaller.pad_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_cut_again(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    smaller, _ = cut_to(tokenizer, CORPUS)
    smallest, _ = cut_to(smaller, CORPUS[:3])
    assert len(smallest) < len(smaller)
    assert [smallest.tokenize(text) for text in CORPUS[:3]] == [tokenizer.tokenize(text) for text in CORPUS[:3]]
    same, _ = cut_to(smaller, CORPUS)
    assert same.get_vocab() == smaller.get_vocab()


def test_bytes_and_characters_always_stay() -> None:
    for kind, count in {"byte-level": 256, "byte-fallback": 256}.items():
        tokenizer = small_tokenizer(kind)
        assert len(cut_to(tokenizer, [""])[0]) >= count + len(SPECIAL)
    for kind in ("wordpiece", "unigram", "ends-of-words"):
        vocabulary = small_tokenizer(kind).get_vocab().keys()
        single = {token for token in vocabulary if len(token.removeprefix("##").removesuffix("</w>")) == 1}
        assert single <= cut_to(small_tokenizer(kind), [""])[0].get_vocab().keys()


def test_a_piece_with_a_character_that_is_no_piece_stays() -> None:
    vocabulary = ["[UNK]", "a", "##a", "b", "##b", "##bß", "ba"]
    model = models.WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    smaller, _ = cut_to(tokenizer, ["ab"])
    assert smaller.get_vocab().keys() == {*vocabulary} - {"ba"}
    assert smaller.tokenize("abß") == tokenizer.tokenize("abß") == ["a", "##bß"]


def test_tokens_that_are_added_keep_their_place_behind_the_others() -> None:
    tokenizer = small_tokenizer("byte-level")
    tokenizer.add_tokens(["<tool>"])
    smaller, ids = cut_to(tokenizer, CORPUS)
    assert smaller.convert_tokens_to_ids("<tool>") == len(ids) - 1 == len(smaller) - 1
    assert smaller.tokenize("ka<tool>lo") == tokenizer.tokenize("ka<tool>lo")


def test_the_tokenizer_itself_stays_as_it_is() -> None:
    tokenizer = small_tokenizer("wordpiece")
    before = tokenizer.backend_tokenizer.to_str()
    cut_to(tokenizer, [""])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_what_cannot_be_cut_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="got WordLevel, which has no pieces for words that it does not know"):
        check_tokenizer(make_tokenizer("pair"))
    with pytest.raises(ValueError, match="cuts tokens, and this model reads none"):
        check_tokenizer(None)

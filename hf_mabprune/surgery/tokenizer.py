"""Cuts tokens out of a tokenizer: which others they need to stay with them, and the tokenizer with those alone.

What encodes is the `tokenizers` library, from the same JSON without some entries. Texts whose tokens all stay are cut
into the same tokens as before:

- WordPiece takes the longest piece that is there, which was the longest of more pieces before.
- BPE applies the first merge of its list that fits. The merges that lead to a token are those of the token taken as a
  text, since none crosses its ends. They stay, with what they merge, so the first that fits is the same.
- Unigram takes the best of all ways to cut a text, with scores that stay as they are.

Other texts are cut into more pieces. Single characters or bytes stay, so that there are pieces for all of them.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_mabprune.errors import kind_of

Json = dict[str, Any]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # tokens of bytes, for characters that have no token
SPACE = "▁"  # stands for a space, and is made one again only if it is a token


def check_tokenizer(processor: Any) -> PreTrainedTokenizerBase:
    """Refuses what is no tokenizer that tokens can be cut out of.

    Raises:
        ValueError: With the remedy.
    """
    if not isinstance(processor, PreTrainedTokenizerBase):
        raise ValueError(
            f"prune.vocabulary cuts tokens, and this model reads none ({kind_of(processor)}): leave it out"
        )
    if not processor.is_fast:
        raise ValueError(
            f"prune.vocabulary needs a fast tokenizer, got {type(processor).__name__}: save the model with a "
            "tokenizer.json, or leave prune.vocabulary out"
        )
    if (kind := _state(processor)["model"]["type"]) not in NEEDED:
        raise ValueError(
            f"prune.vocabulary knows tokenizers of the kinds {', '.join(NEEDED)}, got {kind}, which has no pieces for "
            "words that it does not know: leave prune.vocabulary out"
        )
    return processor


def kept_tokens(tokenizer: PreTrainedTokenizerBase, used: Collection[int]) -> list[int]:
    """Lists the ids of tokens that stay, in their order: used ones, what they are made of, and what stays always.

    Args:
        tokenizer: Fast tokenizer, as `check_tokenizer` takes it.
        used: Ids of tokens that are used.
    """
    state, ids = _state(tokenizer), tokenizer.get_vocab()
    names = {number: token for token, number in ids.items()}
    tokens = {names[number] for number in used if number in names}
    kept = tokens | {*NEEDED[state["model"]["type"]](state["model"], tokens)}
    kept |= {added["content"] for added in state["added_tokens"]} | {state["model"].get("unk_token")}
    return sorted(ids[token] for token in kept if token in ids)


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, ids: Mapping[int, int]) -> PreTrainedTokenizerBase:
    """Copies a tokenizer without some tokens.

    Args:
        tokenizer: Fast tokenizer, as `check_tokenizer` takes it.
        ids: Id of each token that stays -> its id from now on, in the same order.

    Raises:
        ValueError: If the library cannot number the tokens like that.
    """
    state = _state(tokenizer)
    model = state["model"]
    if isinstance(model["vocab"], list):
        model["unk_id"] = ids.get(model["unk_id"])
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in ids]
    else:
        model["vocab"] = {token: ids[number] for token, number in model["vocab"].items() if number in ids}
    if "merges" in model:
        whole = _merged_by(model)
        model["merges"] = [pair for pair in model["merges"] if {*pair, whole(pair)} <= model["vocab"].keys()]
    for added in state["added_tokens"]:
        added["id"] = ids[added["id"]]
    if state["padding"]:
        state["padding"]["pad_id"] = ids.get(state["padding"]["pad_id"], 0)
    _renumber(state["post_processor"], ids)
    smaller = copy.deepcopy(tokenizer, {id(tokenizer.backend_tokenizer): Tokenizer.from_str(json.dumps(state))})
    expected = {token: ids[number] for token, number in tokenizer.get_vocab().items() if number in ids}
    if smaller.get_vocab() != expected:
        raise ValueError(
            "prune.vocabulary: the ids of the tokenizer have gaps that a smaller one cannot have: leave it out"
        )
    return smaller


def _state(tokenizer: PreTrainedTokenizerBase) -> Json:
    """Gives all that a tokenizer is made of, as the contents of its tokenizer.json."""
    state: Json = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _renumber(part: Json | None, ids: Mapping[int, int]) -> None:
    """Gives the special tokens of a post-processor their new ids, in place."""
    if not part:
        return
    for inner in part.get("processors", ()):
        _renumber(inner, ids)
    if isinstance(part.get("special_tokens"), dict):
        for special in part["special_tokens"].values():
            special["ids"] = [ids[number] for number in special["ids"]]
    for name in ("sep", "cls"):
        if name in part:
            token, number = part[name]
            part[name] = [token, ids[number]]


def _needed_by_wordpiece(model: Json, tokens: Collection[str]) -> Iterator[str]:
    """Gives the single characters, and pieces with characters that are none of these."""
    prefix = model["continuing_subword_prefix"]
    for token in model["vocab"]:
        start, body = (prefix, token[len(prefix) :]) if token.startswith(prefix) else ("", token)
        characters = [f"{start if number == 0 else prefix}{character}" for number, character in enumerate(body)]
        if len(body) == 1 or not {*characters} <= model["vocab"].keys():
            yield token


def _needed_by_unigram(model: Json, tokens: Collection[str]) -> Iterator[str]:
    """Gives the single characters, pieces with characters that are none of these, bytes, and a piece of the least
    score, by which the library scores what is unknown."""
    scores = dict(model["vocab"])
    for piece in scores:
        if len(piece) == 1 or not (model["byte_fallback"] or {*piece} <= scores.keys()):
            yield piece
    yield from BYTES
    yield min(scores, key=scores.__getitem__)
    if model["unk_id"] is not None:
        yield model["vocab"][model["unk_id"]][0]


def _needed_by_bpe(model: Json, tokens: Collection[str]) -> Iterator[str]:
    """Gives what the merges make on their way to each token; bytes, or single characters where there are none."""
    whole = _merged_by(model)
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    for token in tokens:
        parts = _characters(model, token)
        yield from parts
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[place : place + 2] = [whole(parts[place : place + 2])]
            yield parts[place]
    yield from (*BYTES, SPACE)
    if not model["byte_fallback"]:
        yield from (token for token in model["vocab"] if len(_characters(model, token)) == 1)


def _characters(model: Json, token: str) -> list[str]:
    """Splits a token of BPE into what merges begin with, each character with the marks of its place."""
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    inside, ends = bool(prefix) and token.startswith(prefix), bool(suffix) and token.endswith(suffix)
    body = token[len(prefix) if inside else 0 : len(token) - len(suffix) if ends else None]
    parts = [f"{prefix if inside or number else ''}{character}" for number, character in enumerate(body)]
    if parts and ends:
        parts[-1] += suffix
    return parts


def _merged_by(model: Json) -> Any:
    """Gives the function that says what a pair becomes."""
    prefix = model["continuing_subword_prefix"] or ""
    return lambda pair: pair[0] + pair[1][len(prefix) :]


# What stays with used tokens, by kind of tokenizer.
NEEDED = {"WordPiece": _needed_by_wordpiece, "BPE": _needed_by_bpe, "Unigram": _needed_by_unigram}

"""Small tokenizers of every kind that tokens can be cut out of, trained on made-up words; and texts for them."""

import json
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.seeds import moved

SYLLABLES = ["ka", "lo", "mi", "tur", "sen", "ba", "ri", "von", "és", "że"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE = 240  # tokens that training may make
FOREIGN = ["日本語 ka", "  two  spaces\tand a tab\n", "[MASK] kalo [SEP]", "", "ŻÓŁĆ 🙂", "xyzzy<0x41>▁"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of words of up to four syllables."""
    rng = np.random.default_rng(moved(seed))

    def word() -> str:
        return "".join(rng.choice(SYLLABLES, rng.integers(1, 5)))

    vocabulary = [word() for _ in range(120)]
    return [" ".join(rng.choice(vocabulary, rng.integers(3, 9))) for _ in range(count)]


def small_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS`, which frames a text with [CLS] and [SEP]."""
    tokenizer = KINDS[kind]()
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([*texts(400), *"FOREIGN words [x]"], trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=SPECIAL))


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = SIZE + len(alphabet)
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet))


def _ends_of_words() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    return _trained(tokenizer, trainer)


def _byte_fallback() -> Tokenizer:
    """As those of Llama and Gemma: a text is one word, and characters without a token are spelled in bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    state = json.loads(_trained(tokenizer, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=SPECIAL)).to_str())
    model, known = state["model"], len(state["model"]["vocab"])
    model["vocab"] |= {f"<0x{byte:02X}>": known + byte for byte in range(256)}
    # As where merges are made of a list of pieces: every pair that makes a token, in the order of what they make.
    ids = model["vocab"]
    pairs = [(token[:cut], token[cut:]) for token in ids for cut in range(1, len(token))]
    model["merges"] = [
        list(pair)
        for pair in sorted(
            (pair for pair in pairs if set(pair) <= ids.keys() and "[" not in "".join(pair)),
            key=lambda pair: (ids["".join(pair)], ids[pair[0]]),
        )
    ]
    model["byte_fallback"], state["pre_tokenizer"] = True, None
    whole = Tokenizer.from_str(json.dumps(state))
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return whole


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=SPECIAL, unk_token="[UNK]"))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": _wordpiece,
    "byte-level": _byte_level,
    "byte-fallback": _byte_fallback,
    "ends-of-words": _ends_of_words,
    "unigram": _unigram,
}

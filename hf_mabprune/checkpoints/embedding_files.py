"""The files that a folder of sentence-transformers has beside a transformer and its tokenizer: how token states become
one embedding of a text, and what is done to the text before.

The format is that of sentence-transformers 2 to 6 (`SentenceTransformer.save`): modules.json lists modules, each with
a folder for its config; config_sentence_transformers.json has prompts and the similarity; sentence_bert_config.json,
lengths.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from hf_mabprune.checkpoints.stored_files import read_json, read_json_list, stored_file

MODULES, MODEL = "modules.json", "config_sentence_transformers.json"
TEXTS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
PACKAGE = "sentence_transformers"
KNOWN = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
# What each way of pooling is called since version 6, and the flag that older versions have for it.
FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}
POOLINGS = ("mean", "cls", "max", "lasttoken")  # that are understood here


@dataclass(frozen=True)
class EmbeddingFiles:
    """What a model of sentence-transformers does with texts and token states, and the files that say so.

    Attributes:
        pooling: Way from token states to an embedding, one of `POOLINGS`.
        max_length: Tokens that texts are cut at; None leaves that to tokenizer and model.
        lower_case: Whether texts are put in lower case first.
        prompt: Text that is put before every text where nobody asks for another prompt.
        contents: Name below the folder -> text of the file.
    """

    pooling: str = "mean"
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    contents: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_encoder(cls, pooling: str, width: int) -> "EmbeddingFiles":
        """Makes files for a plain encoder, which any version of sentence-transformers reads.

        Args:
            pooling: Way of pooling.
            width: Hidden size D.
        """
        kinds = KNOWN[0]
        paths = ["" if number == 0 else f"{number}_{kind}" for number, kind in enumerate(kinds)]
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"{PACKAGE}.models.{kind}"}
            for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ]
        flags = {flag: way == pooling for way, flag in FLAGS.items()}
        contents = {MODULES: modules, f"{paths[1]}/config.json": {"word_embedding_dimension": width, **flags}}
        return cls(pooling, contents={name: json.dumps(content, indent=2) for name, content in contents.items()})

    @classmethod
    def read(cls, name: str, **origin: Any) -> "EmbeddingFiles | None":
        """Reads the files of a stored model; None where it is none of sentence-transformers.

        Args:
            name: Folder or Hub name.
            origin: Options of `from_pretrained` that say which files are meant.

        Raises:
            ValueError: If a file cannot be read, or the model does more than pool and normalise, pools in another way
                or compares embeddings by their lengths too.
        """
        place = stored_file(name, MODULES, **origin) if name else None
        if place is None:
            return None
        paths = _paths(read_json_list(place), name)
        found = {MODULES: place}
        for file in (MODEL, *TEXTS, *(f"{path}/config.json" for path in paths.values() if path)):
            if path := stored_file(name, file, **origin):
                found[file] = path
        settings = {file: read_json(path) for file, path in found.items() if file != MODULES}
        model = settings.get(MODEL, {})
        _check_similarity(model.get("similarity_fn_name"), "Normalize" in paths, name)
        texts = next((settings[file] for file in TEXTS if file in settings), {})
        prompt = (model.get("prompts") or {}).get(model.get("default_prompt_name")) or ""
        return cls(
            _pooling(settings.get(f"{paths['Pooling']}/config.json", {}), name),
            texts.get("max_seq_length"),
            bool(texts.get("do_lower_case")),
            str(prompt),
            {file: path.read_text(encoding="utf-8") for file, path in found.items()},
        )


def _paths(modules: list[Any], name: str) -> dict[str, str]:
    """Gives the folder of each module by its kind, e.g. {"Transformer": "", "Pooling": "1_Pooling"}."""
    places = [(str(module.get("type")), str(module.get("path"))) for module in modules if isinstance(module, dict)]
    kinds = [kind.rpartition(".")[2] if kind.startswith(f"{PACKAGE}.") else kind for kind, _ in places]
    if kinds not in KNOWN:
        raise ValueError(
            f"{MODULES} of {name} must list Transformer and Pooling, and perhaps Normalize, got "
            f"{', '.join(kinds)[:200] or 'nothing'}: what other modules do to an embedding is not known here"
        )
    paths = dict(zip(kinds, (path for _, path in places), strict=True))
    for kind, path in paths.items():
        if not re.fullmatch(r"\w[\w.-]*" if path or kind != "Transformer" else "", path):
            raise ValueError(f"{MODULES} of {name} must name a folder beside it for {kind}, got {path!r:.80}")
    if paths["Transformer"]:
        raise ValueError(
            f"the transformer of {name} must lie beside {MODULES}, got a folder of its own, {paths['Transformer']}: "
            "load the model with sentence-transformers and save it again"
        )
    return paths


def _pooling(settings: dict[str, Any], name: str) -> str:
    """Gives the one way of pooling that a config says; mean, where it says none."""
    ways = settings.get("pooling_mode") or [way for way, flag in FLAGS.items() if settings.get(flag)] or ["mean"]
    ways = [ways] if isinstance(ways, str) else list(ways)
    if len(ways) != 1 or ways[0] not in POOLINGS:
        raise ValueError(f"{name} must pool by one of {', '.join(POOLINGS)}, got {', '.join(map(str, ways))}")
    if settings.get("include_prompt") is False:
        raise ValueError(f"{name} must pool the tokens of prompts, too, got include_prompt: false")
    return str(ways[0])


def _check_similarity(similarity: str | None, normalised: bool, name: str) -> None:
    """Refuses embeddings whose lengths mean something: here, they are compared by direction alone."""
    if similarity not in (None, "cosine") and not normalised:
        raise ValueError(
            f"{name} must compare embeddings by their cosine, or normalise them, got similarity_fn_name {similarity}"
        )

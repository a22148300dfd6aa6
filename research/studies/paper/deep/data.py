"""The data of the deep settings: drawn once from larger files, or generated, and kept as three files a source.

The larger files are parquet, in a folder for each of `SOURCES` that is not generated: train.parquet and test.parquet,
and validation.parquet where there is one. The encoder that texts are read with goes beside the data, in float16 and
without the tokens that these texts hardly have, so that all that the settings read stays small; words that go are cut
into more pieces.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoTokenizer

from hf_mabprune.data.splits import draw
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.surgery.tokenizer import cut_tokenizer
from hf_mabprune.surgery.vocabulary import without_tokens
from hf_mabprune.vocabulary import new_ids, tokens_in
from research.studies.paper.deep.stories import KINDS, data_set

ENCODER = "encoder"
BASE = "sentence-transformers/all-MiniLM-L6-v2"
MIN_COUNT = 6  # times that a token occurs in all texts, or it goes
SEED = 0  # of all draws: every run of the study reads the same rows
HARD = ("three_facts", "yes_no")  # kinds of questions that take more to learn
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Says how many rows of a source serve for what.

    Attributes:
        train, validation, test: Rows, or fewer where there are no more.
        kind: Kind of generated stories; empty where rows are drawn from files.
    """

    train: int
    validation: int
    test: int
    kind: str = ""

    def sizes(self) -> dict[str, int]:
        """Maps splits to rows."""
        return {split: getattr(self, split) for split in SPLITS}


TEXTS = {
    "sst2": Source(12_000, 500, 400),
    "agnews": Source(6_000, 500, 400),
    "nli_sick": Source(4_440, 495, 400),
    "openbookqa": Source(4_957, 500, 400),
}
SOURCES = {
    "mnist": Source(5_000, 500, 1_000),
    "cifar10": Source(8_000, 500, 1_000),
    **TEXTS,
    **{kind: Source(40_000 if kind in HARD else 20_000, 500, 1_000, kind) for kind in KINDS},
}


def prepare(name: str, data: Path, out: Path) -> Path:
    """Writes the three files of a source, unless they are there.

    Args:
        name: One of `SOURCES`.
        data: Folder of the larger files; generated stories need none.
        out: Folder of all sources.

    Returns:
        Folder with train.parquet, validation.parquet and test.parquet.

    Raises:
        OSError: If a larger file is missing or cannot be read.
    """
    folder, source = out / name, SOURCES[name]
    if not folder.is_dir():
        rows = data_set(source.kind, source.sizes(), SEED) if source.kind else _drawn(source, data / name)
        with atomic_folder(folder) as work:
            for split, part in rows.items():
                part.to_parquet(str(work / f"{split}.parquet"))
    return folder


def _drawn(source: Source, folder: Path) -> DatasetDict:
    """Draws rows of larger files; validation rows from those of training, where there are no others."""
    if missing := [split for split in ("train", "test") if not (folder / f"{split}.parquet").is_file()]:
        raise FileNotFoundError(f"{folder} has no {missing[0]}.parquet, which deep settings of the study read")
    own = (folder / "validation.parquet").is_file()
    train, test = (Dataset.from_parquet(str(folder / f"{split}.parquet")) for split in ("train", "test"))
    train = draw(train, source.train + (0 if own else source.validation), SEED)
    if own:
        validation = draw(Dataset.from_parquet(str(folder / "validation.parquet")), source.validation, SEED)
    else:
        rest = len(train) - source.validation
        train, validation = train.select(range(rest)), train.select(range(rest, len(train)))
    return DatasetDict(train=train, validation=validation, test=draw(test, source.test, SEED))


def prepare_encoder(base: str, out: Path) -> Path:
    """Writes the encoder that text settings start from, unless it is there; gives its folder.

    Args:
        base: Hub name or folder of the encoder.
        out: Folder of all sources, which the texts are in already.
    """
    folder = out / ENCODER
    if not folder.is_dir():
        model, tokenizer = AutoModel.from_pretrained(base, dtype=torch.float32), AutoTokenizer.from_pretrained(base)
        files = [str(out / name / f"{split}.parquet") for name in TEXTS for split in SPLITS]
        counts = tokens_in(tokenizer, files)
        keep, ids = new_ids(model, tokenizer, {token for token, count in counts.items() if count >= MIN_COUNT})
        with atomic_folder(folder) as work:
            without_tokens(model, keep, ids).half().save_pretrained(work)
            cut_tokenizer(tokenizer, ids).save_pretrained(work)
    return folder

"""Make the quickstart model and its data sample from SST-2.

Everything in this folder comes from one command, run in this folder:

    python train.py --data-dir path/to/sst2

`--data-dir` is a folder with `train.parquet`, `validation.parquet` and `test.parquet`, each with the columns
`sentence` and `label` (0 = negative, 1 = positive). Without it the data come from the Hub (`--dataset`, config
`sst2`); the Hub's GLUE hides the labels of the test split, so that way gives no test accuracy and no test file.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, load_dataset
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    set_seed,
)

SPLITS = ("train", "validation", "test")
LABELS = {0: "negative", 1: "positive"}
MAX_LENGTH = 96
PAD_ID = 0
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_splits(dataset: str, data_dir: Path | None) -> DatasetDict:
    """Return the splits with the columns `sentence` and `label`, without a split whose labels are hidden (-1)."""
    if data_dir is None:
        splits = load_dataset(dataset, "sst2")
    else:
        splits = load_dataset("parquet", data_files={split: str(data_dir / f"{split}.parquet") for split in SPLITS})
    splits = splits.select_columns(["sentence", "label"])
    return DatasetDict({name: rows for name, rows in splits.items() if min(rows["label"]) >= 0})


def train_tokenizer(sentences: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a lower-case WordPiece vocabulary on the sentences."""
    trained = BertWordPieceTokenizer(lowercase=True)
    # The trainer breaks ties by token id and numbers the continuing characters in no fixed order. Listing them first
    # fixes their ids, so that the same sentences give the same vocabulary.
    inner = {char for sentence in sentences for word in trained.normalize(sentence).split() for char in word[1:]}
    first = [*SPECIAL_TOKENS, *(f"##{char}" for char in sorted(inner))]
    trained.train_from_iterator(
        sentences, vocab_size=vocab_size, min_frequency=2, special_tokens=first, show_progress=False
    )
    return BertTokenizerFast(vocab=trained.get_vocab(), do_lower_case=True, model_max_length=MAX_LENGTH)


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> BertForSequenceClassification:
    """Return a BERT classifier with random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=MAX_LENGTH,
        # Dropout would spread the work over many like units, and then any half of them could go.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD_ID,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
    )
    return BertForSequenceClassification(config)


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[tuple[torch.Tensor, int]]:
    """Return a (token ids, label) pair for each row."""
    ids = tokenizer(list(rows["sentence"]), truncation=True)["input_ids"]
    return [(torch.tensor(row), label) for row, label in zip(ids, rows["label"], strict=True)]


def batches(examples: list[tuple[torch.Tensor, int]], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (token ids, labels) in random order, rows of like length together, which saves most of the padding."""
    order = random.sample(range(len(examples)), k=len(examples))
    order.sort(key=lambda row: len(examples[row][0]))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    random.shuffle(chunks)
    for chunk in chunks:
        ids = pad_sequence([examples[row][0] for row in chunk], batch_first=True, padding_value=PAD_ID)
        yield ids, torch.tensor([examples[row][1] for row in chunk])


@torch.no_grad()
def accuracy(model: PreTrainedModel, examples: list[tuple[torch.Tensor, int]]) -> float:
    """Return the share of examples that the model labels right."""
    model.eval()
    right = 0
    for ids, labels in batches(examples, size=128):
        right += int((model(ids, attention_mask=ids != PAD_ID).logits.argmax(dim=-1) == labels).sum())
    return right / len(examples)


def train(
    args: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, list[tuple[torch.Tensor, int]]],
) -> None:
    """Train in place with AdamW, a linear schedule and random token masking."""
    words = model.get_input_embeddings().weight
    rest = [parameter for parameter in model.parameters() if parameter is not words]
    # Embeddings that learn slowly leave the verdict to attention and feed-forward layers, where pruning can be felt;
    # at the full rate the model is close to a bag of words.
    slow = {"params": [words], "lr": args.learning_rate * args.embedding_lr_scale}
    optimizer = torch.optim.AdamW([{"params": rest}, slow], lr=args.learning_rate, weight_decay=0.01)
    steps = args.epochs * -(-len(splits["train"]) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    special_ids = torch.tensor(tokenizer.all_special_ids)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for ids, labels in batches(splits["train"], args.batch_size):
            # Masked words keep a model of this size from resting its verdict on single rare words.
            masked = (torch.rand(ids.shape) < args.token_masking) & ~torch.isin(ids, special_ids)
            logits = model(ids.masked_fill(masked, tokenizer.mask_token_id), attention_mask=ids != PAD_ID).logits
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        validation = accuracy(model, splits["validation"])
        print(f"epoch {epoch}: loss {total / len(splits['train']):.4f}, validation accuracy {validation:.4f}")


def write_sample(splits: DatasetDict, folder: Path, train_rows: int, seed: int) -> None:
    """Write a sample of the training rows and every row of the other splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        if name == "train":
            rows = rows.shuffle(seed=seed).select(range(min(train_rows, len(rows))))
        rows.to_parquet(folder / f"{name}.parquet")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with train, validation and test.parquet")
    parser.add_argument("--dataset", default="nyu-mll/glue", help="Hub data set, read without --data-dir")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, help="where model/ and data/ go")
    parser.add_argument("--sample-rows", type=int, default=4000, help="training rows in data/train.parquet")
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--intermediate-size", type=int, default=512)
    parser.add_argument("--token-masking", type=float, default=0.1, help="share of training tokens masked")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--embedding-lr-scale", type=float, default=0.05, help="rate of the word embeddings")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of what makes a run repeatable")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    set_seed(args.seed)
    splits = load_splits(args.dataset, args.data_dir)
    tokenizer = train_tokenizer(list(splits["train"]["sentence"]), args.vocab_size)
    model = build_model(args, tokenizer)
    train(args, model, tokenizer, {name: encode(rows, tokenizer) for name, rows in splits.items()})

    model_dir = args.output_dir / "model"
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    write_sample(splits, args.output_dir / "data", args.sample_rows, args.seed)

    saved = AutoModelForSequenceClassification.from_pretrained(model_dir)
    saved_tokenizer = AutoTokenizer.from_pretrained(model_dir)
    print(f"{saved.num_parameters():,} parameters")
    for name in SPLITS[1:]:
        if name in splits:
            print(f"{name} accuracy: {accuracy(saved, encode(splits[name], saved_tokenizer)):.4f}")


if __name__ == "__main__":
    main()

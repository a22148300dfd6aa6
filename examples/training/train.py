"""Fine-tunes the quickstart's classifier with a Trainer that prunes it on the way.

    python examples/training/train.py --output-dir runs/training
    python examples/training/train.py --output-dir runs/training --resume     # from its last checkpoint

In several processes, `accelerate launch --config_file configs/accelerate/cpu_2.yaml examples/training/train.py ...`.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from hf_mabprune import PruneCallback

QUICKSTART = Path(__file__).parents[1] / "quickstart"
STEPS, CUT_AT = 120, 60


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Says which part of the answers is right."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Trains, cuts and trains on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, help="folder of checkpoints and of the final model")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in that folder")
    options = parser.parse_args()

    model = AutoModelForSequenceClassification.from_pretrained(QUICKSTART / "model")
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    files = {split: str(QUICKSTART / "data" / f"{split}.parquet") for split in ("train", "validation", "test")}
    texts = load_dataset("parquet", data_files=files)
    tokens = texts.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=64), batched=True)

    trainer = Trainer(
        model,
        TrainingArguments(
            options.output_dir,
            max_steps=STEPS,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=1e-4,
            eval_strategy="steps",
            eval_steps=STEPS // 4,
            save_steps=STEPS // 4,
            load_best_model_at_end=True,  # of the checkpoints from after the cut
            metric_for_best_model="accuracy",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=tokens["train"],
        eval_dataset=tokens["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    # Texts as they are: the search makes its own batches of them. `validation` is what layouts are chosen on.
    data = texts["train"], texts["validation"]
    target = {"neurons": 0.5, "heads": 0.5}
    trainer.add_callback(PruneCallback(trainer, {CUT_AT: target}, *data, task={"calibration_examples": 256}))
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model()  # AutoModelForSequenceClassification.from_pretrained(output_dir), after import hf_mabprune


if __name__ == "__main__":
    main()

"""Which examples a run reads, in which slices, for which kind of task."""

from typing import Any

from pydantic import Field

from hf_mabprune.config.base import Place, Strict

REFIT_SHARE = 3  # examples for refits, for each one that choices are made on, where nobody says how many
SAMPLE_TEXT = "sample-text"  # what the text that comes with the package is called in the place of a path


class DatasetConfig(Strict):
    """Where the examples come from: a name on the Hub, or local files."""

    path: Place = Field(
        description="Hub name, a loader for local files (parquet, json, csv, text, imagefolder), a folder of such "
        "files or of save_to_disk, or sample-text: what comes with hf_mabprune"
    )
    name: str | None = Field(None, description="configuration of the data set on the Hub")
    data_files: dict[str, Place | list[Place]] | None = Field(
        None, description="split -> file or files, for local files"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    options: dict[str, Any] = Field(
        {}, description="options of the loader of the files, e.g. {sep: ';', keep_default_na: false} for csv"
    )
    streaming: bool = Field(
        False,
        description="read only as many rows as the run asks for, shuffled within a buffer, without the rest; takes "
        "evaluation_examples",
    )


class SplitsConfig(Strict):
    """Which slice serves which purpose. Rewards see calibration, choices see validation, test is read once."""

    calibration: str = Field("train", description="slice that pulls are measured on, e.g. train[2000:]")
    validation: str = Field("validation", description="slice that choices such as the layout are made on")
    test: str = Field("test", description="slice that only the report reads")
    certification: str | None = Field(
        None, description="slice that only the bounds of the report are computed on; null: test"
    )
    shuffle: bool = Field(
        False, description="shuffle all rows with the seed before they are sliced, for files sorted by label"
    )

    def slices(self) -> dict[str, str]:
        """Gives purpose -> slice, of those that are read."""
        named = self.model_dump(exclude={"shuffle"})
        return {purpose: spec for purpose, spec in named.items() if spec is not None}


class TaskConfig(Strict):
    """The data and the kind of task."""

    type: str | None = Field(None, description="kind of task; taken from the model's head when left out")
    dataset: DatasetConfig = Field(
        DatasetConfig(path=SAMPLE_TEXT),
        description="where the examples come from; a sample of Wikipedia when left out",
    )
    columns: dict[str, str] = Field(
        {},
        description="role -> column, or a field of one: answers.text; roles depend on the task: text, image, label",
    )
    splits: SplitsConfig = Field(SplitsConfig(), description="which slice serves which purpose")
    calibration_examples: int = Field(1024, gt=0, description="examples (for language models: windows) for pulls")
    refit_examples: int | None = Field(
        None,
        ge=0,
        description="further examples that refits alone are made from, at one forward pass each; null: three times "
        "calibration_examples for language models and sentence embedders, else none",
    )
    calibration_positions: int | None = Field(
        None,
        gt=0,
        description="tokens of a calibration window whose predictions are compared, drawn; null: all, or as many as "
        "make a large vocabulary cost no more than the layers",
    )
    evaluation_examples: int | None = Field(None, gt=0, description="cap on validation and test examples; null: all")
    batch_size: int = Field(32, gt=0, description="examples a pull is measured on")
    evaluation_positions: int | None = Field(
        None,
        gt=0,
        description="tokens of a validation or test window whose predictions count, drawn; null: all",
    )
    max_broken_batches: int = Field(
        2, ge=0, description="calibration batches without a finite loss that are skipped before the run gives up"
    )
    max_length: int | None = Field(None, gt=1, description="longest sequence or language-model window, in tokens")
    prefix: str | None = Field(
        None,
        description="text before every source of a seq2seq task, e.g. 'summarize: ', or before every text to embed; "
        "null: none, or the model's default prompt",
    )
    pooling: str | None = Field(
        None,
        description="how token states of a plain encoder become an embedding: mean, cls, max, lasttoken; null: as the "
        "model's own files say, else mean",
    )
    metrics: list[str] = Field([], description="metrics; empty: the task's own. Unknown names go to evaluate.load")

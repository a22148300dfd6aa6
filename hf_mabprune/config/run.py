"""The whole of a run's settings, and of an evaluation's: the YAML file is such a tree written down."""

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from hf_mabprune.config.base import Place, Strict, check_as
from hf_mabprune.config.data import TaskConfig
from hf_mabprune.config.reader import read_yaml
from hf_mabprune.config.recovery import RecoveryConfig
from hf_mabprune.config.search import SearchConfig
from hf_mabprune.config.target import PruningConfig
from hf_mabprune.errors import outside, without_credentials_in

BLOCK_OF_PULLS = 16  # neurons that a pull masks together where nobody says how many


class ModelConfig(Strict):
    """Which model is pruned."""

    name: Place = Field(description="Hub name or folder of the model")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of the search; auto is float32, for half precision loses the effect of single neurons",
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the saved weights; auto is that of the source checkpoint"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    dequantize: bool = Field(
        False,
        description="unpack a quantised checkpoint (MXFP4, FP8, bitsandbytes, GGUF, ...), which cannot be cut packed",
    )
    gguf_file: str | None = Field(
        None, description="GGUF file of that folder or Hub name which holds the model, as in transformers"
    )
    device_map: str | dict[str, int | str] | None = Field(
        None,
        description="where weights lie, as in transformers: auto, or a device, cpu or disk for each module; layers "
        "that lie elsewhere than the run computes are brought in one at a time; null: all where it computes",
    )
    max_memory: dict[str, int | str] | None = Field(
        None, description="most weights that each device may hold, as in transformers, for device_map: auto"
    )
    offload_folder: Place | None = Field(
        None, description="folder of temporary files for weights on disk; null: that of the system"
    )

    @model_validator(mode="after")
    def _says_where_weights_lie(self) -> "ModelConfig":
        if isinstance(self.device_map, dict) and "" in self.device_map and len(self.device_map) > 1:
            raise ValueError("model.device_map: '' is the whole model: name it alone, or all modules in its place")
        for name in ("max_memory", "offload_folder"):
            if getattr(self, name) is not None and self.device_map is None:
                raise ValueError(f"model.{name} is for model.device_map: set that to auto, or leave both out")
        return self

    @model_validator(mode="after")
    def _says_to_unpack(self) -> "ModelConfig":
        if self.gguf_file is not None and not self.dequantize:
            raise ValueError("model.gguf_file is read as an ordinary model: set model.dequantize: true")
        return self

    def places(self) -> dict[str, Any]:
        """Gives the options of `from_pretrained` that say where weights lie; none where nobody asks."""
        if self.device_map is None:
            return {}
        most: dict[int | str, int | str] | None = None
        if self.max_memory is not None:
            most = {int(place) if place.isdigit() else place: held for place, held in self.max_memory.items()}
        return {"device_map": self.device_map, "max_memory": most, "offload_folder": self.offload_folder}


class OutputConfig(Strict):
    """Where the result goes."""

    dir: str = Field(description="folder of the smaller checkpoint, its card and its report")
    overwrite: bool = Field(False, description="replace an existing folder")
    random_seeds: int = Field(
        3,
        ge=0,
        description="draws of the random control that the report shows, each refitted alike; 0 saves their time, and "
        "nothing then says that the search was worth its cost",
    )
    criteria: list[str] = Field(
        [], description="criteria that choose alone, at the same size and refitted alike, for rows of the report"
    )
    push_to_hub: str | None = Field(None, description="name on the Hub, owner/name, that the result is pushed to")
    log_with: list[str] = Field([], description="trackers of Accelerate: tensorboard, wandb, trackio, ...")
    log_dir: Place | None = Field(None, description="folder for trackers that write files; null: DIR.logs")

    @field_validator("dir")
    @classmethod
    def _names_a_folder(cls, given: str) -> str:
        if not given.strip() or "\0" in given or "://" in given:
            raise ValueError("must name a folder of this machine, e.g. runs/pruned")
        with outside("cannot be used"):
            os.fsencode(given)
            return str(Path(given).expanduser()) if given.startswith("~") else given


class PruneConfig(Strict):
    """Everything about one pruning run."""

    model: ModelConfig = Field(description="which model is pruned")
    task: TaskConfig = Field(TaskConfig(), description="the data and the kind of task")
    prune: PruningConfig = Field(description="what may be removed, and how much")
    search: SearchConfig = Field(SearchConfig(), description="how the arms are found")
    compensation: str | dict[str, Any] | None = Field(
        "least_squares",
        description="refit of what stays on calibration data, a name or {name: ..., option: ...}; null: none",
    )
    recovery: RecoveryConfig | None = Field(
        None, description="training of what stays, with the dense model as teacher; null: none"
    )
    output: OutputConfig = Field(description="where the result goes")
    seed: int = Field(0, ge=0, description="of everything random")

    @model_validator(mode="after")
    def _rule_fits(self) -> "PruneConfig":
        if self.search.criterion is None:
            self.resolved_rule()
        return self

    @model_validator(mode="after")
    def _stages_make_one_size(self) -> "PruneConfig":
        if self.stages > 1 and len(self.prune.sizes()) > 1:
            raise ValueError(
                f"recovery.stages {self.stages} trains one model on the way to one size, got "
                f"{len(self.prune.sizes())} sizes: give one, or set recovery.stages to 1"
            )
        return self

    @model_validator(mode="after")
    def _layers_go_at_once(self) -> "PruneConfig":
        if self.stages > 1 and "layer" in self.prune.kinds():
            raise ValueError(
                f"recovery.stages must be 1 where layers go, got {self.stages}: prune the result again instead"
            )
        return self

    @property
    def stages(self) -> int:
        """Number of stages in which the target is reached."""
        return self.recovery.stages if self.recovery else 1

    def resolved_rule(self) -> dict[str, Any]:
        """Gives name and options of the removal rule; the name follows from the other settings where it was left out.

        Raises:
            ValueError: For a rule that contradicts the other settings.
        """
        given = self.compensation
        name = given.get("name") if isinstance(given, dict) else given
        return self.search.resolved_rule(name, self.prune.kinds())

    @property
    def block_size(self) -> int:
        """Neighbouring neurons that go together, decided where it was left out."""
        if self.prune.block_size is not None:
            return self.prune.block_size
        measured_whole = self.search.criterion is not None or self.resolved_rule()["name"] == "refit"
        return 1 if measured_whole and not self.search.pulls_per_arm else BLOCK_OF_PULLS

    def resolved(self) -> "PruneConfig":
        """Gives the same settings with everything decided that was left to follow from the rest."""
        rule = self.search.rule if self.search.criterion is not None else self.resolved_rule()
        return self.model_copy(
            update={
                "prune": self.prune.model_copy(update={"block_size": self.block_size}),
                "search": self.search.model_copy(update={"rule": rule}),
            }
        )

    def stored(self) -> dict[str, Any]:
        """Gives the settings as they are written down: all of them, but for the credentials in addresses."""
        stored: dict[str, Any] = without_credentials_in(self.model_dump())
        return stored

    def to_yaml(self) -> str:
        """Writes the exact, resolved config down; credentials in addresses are cut."""
        return yaml.safe_dump(self.stored(), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "PruneConfig":
        """Reads and checks a YAML file.

        Args:
            path: YAML file with the settings.

        Raises:
            ValueError: One line that names the wrong key and the nearest known one, or the rule that is broken.
            OSError: If it is no file that can be read.
        """
        return check(read_yaml(path))


class EvaluateConfig(Strict):
    """Which checkpoint is measured on what."""

    model: ModelConfig = Field(description="the checkpoint")
    task: TaskConfig = Field(TaskConfig(), description="the data and the kind of task")
    seed: int = Field(0, ge=0, description="of the draw of examples")


class SparsifyConfig(EvaluateConfig):
    """Which checkpoint gets zeros, and what they are chosen, trained and measured on."""

    recovery: RecoveryConfig | None = Field(
        None, description="training under the masks, with the dense model as teacher; null: none"
    )

    @model_validator(mode="after")
    def _trains_what_is_masked(self) -> "SparsifyConfig":
        if self.recovery and (self.recovery.method != "full" or self.recovery.stages > 1):
            raise ValueError(
                f"recovery under masks trains all weights at once, got method {self.recovery.method} and stages "
                f"{self.recovery.stages}: set recovery.method full and stages 1, or recovery null"
            )
        return self


def check(settings: dict[str, Any]) -> PruneConfig:
    """Validates a nested dict of settings of a pruning run.

    Args:
        settings: The YAML file's content, defaults left out where they will do.

    Raises:
        ValueError: One line a fault.
    """
    return check_as(settings, PruneConfig).resolved()

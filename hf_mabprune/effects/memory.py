"""What memory depends on. Every part that needs much of it says how much from these sizes, by a function `memory`.

Symbols: T tokens; D hidden; C columns of a projection, F neurons or H * Dh.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.arms import ArmTable
from hf_mabprune.checkpoints.offload import bytes_at_hand
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.effects.taps import positions_a_token
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

TOKENS_A_FORWARD = {"cpu": 2048, "cuda": 65536}  # a matrix product of this many rows fills the device


@dataclass(frozen=True)
class Sizes:
    """The numbers that decide how much memory a run takes.

    Attributes:
        item: Bytes of a number.
        weights: Bytes of the model that are in memory at a time.
        layers: Number of layers, of all stacks.
        hidden: D, the largest of any projection.
        columns: C of every projection that has arms, those of experts apart.
        batch_tokens: Positions of the largest calibration batch, padding included, all examples together.
        tokens: The same of all calibration batches.
        forward_tokens: Positions that a pass of several pulls is filled up to.
        reserve: Memory of the run.
    """

    item: int
    weights: int
    layers: int
    hidden: int
    columns: tuple[int, ...]
    batch_tokens: int
    tokens: int
    forward_tokens: int
    reserve: Reserve

    @classmethod
    def of(
        cls, model: PreTrainedModel, arms: ArmTable, task: Task, batches: Sequence[Batch], reserve: Reserve
    ) -> "Sizes":
        """Takes them from a model, its arms, its task, the calibration batches and the reserve of a run."""
        positions = positions_a_token(model, task, batches[0])
        lengths = [batch.tokens * positions for batch in batches]
        architecture = architecture_of(model)
        everything = architecture.sites(model)
        sites = [site for site in (*everything, *architecture.whole_layers(model)) if site.kind in arms.kinds()]
        parts = {part.name: part for site in sites for part in members(site, everything)}.values()
        return cls(
            item=model.dtype.itemsize,
            weights=bytes_at_hand(model),
            layers=len(architecture.layers(model)),
            hidden=max(len(projection_of(model, part).parts[0]) for part in parts),
            columns=tuple(part.columns for part in parts),
            batch_tokens=max(lengths),
            tokens=sum(lengths),
            forward_tokens=TOKENS_A_FORWARD.get(model.device.type, TOKENS_A_FORWARD["cpu"]),
            reserve=reserve,
        )

    @property
    def squares(self) -> list[int]:
        """Bytes of the second moments of each site, [C, C] float32."""
        return [4 * columns**2 for columns in self.columns]

    def together(self, matrices: int) -> int:
        """Counts the bytes of statistics that are taken at once, so many matrices a site: what there is room for."""
        return max(matrices * max(self.squares), min(self.reserve.room, matrices * sum(self.squares)))

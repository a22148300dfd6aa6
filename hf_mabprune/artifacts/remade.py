"""Makes a checkpoint again from its base model and compares the two: `mabprune verify --base`.

What surgery leaves is a slice of the base, which any machine cuts out bit for bit. Refitted weights depend on the
order of floating-point sums, so they are compared within a tolerance. What training changed cannot be made again.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_mabprune.arms import KeepIndices
from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.fit import CONFIG, stored_tensors
from hf_mabprune.artifacts.remaking import Made, remake, stored_dtype
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import HALF_TOLERANCE, TOLERANCE
from hf_mabprune.artifacts.verification import Check, Further, NotChecked, Parts, checked, some
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import Processor, load_processor
from hf_mabprune.checkpoints.stored_files import read_json
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.errors import in_words
from hf_mabprune.evaluation.report import installed_versions
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.hashes import sha256_of_batches, sha256_of_weights
from hf_mabprune.session import Session, load_model, make_session
from hf_mabprune.surgery.cut import Layout, cut
from hf_mabprune.vocabulary import with_vocabulary_of

ON_REFITS = 1e-3  # of a refitted number, over the root mean square of its tensor
VERSIONS = ("transformers", "torch")
FREE_FIELDS = {"transformers_version", "_name_or_path"}  # of config.json, that say nothing of the model


def against_base(base: str, settings_of: Callable[[Path], PruneConfig]) -> Further:
    """Gives the checks of a checkpoint against the model that it was made from.

    Args:
        base: Folder or Hub name of that model; from the Hub it is taken at the revision in the settings.
        settings_of: Reads the settings of a folder, with what the user says of the data.
    """

    def further(parts: Parts) -> Iterator[Check]:
        settings = settings_of(parts.run.root)
        revision = None if Path(base).exists() else settings.model.revision
        which = {"name": base, "revision": revision}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=which)})
        model, processor = load_model(settings.model, settings.task)
        if settings.prune.vocabulary:  # its texts need not be here: what stayed, the stored tokenizer says
            stored = load_processor("AutoTokenizer", str(parts.run.root))
            model, processor = with_vocabulary_of(stored, model, processor)
            prune = settings.prune.model_copy(update={"vocabulary": None})
            settings = settings.model_copy(update={"prune": prune})
        yield from _Remaking(parts, settings, model, processor).checks()

    return further


@dataclass
class _Remaking:
    """A checkpoint that is made again.

    Attributes:
        parts: What was read of its folder.
        settings: Settings of the run, with the base for its model.
        dense: The base; where the run cut its vocabulary, with the tokens that the run kept.
        processor: Tokenizer or processor of the base, with the same tokens.
        session: What refits are made with; None where the data are not the run's, or not there.
        why_not: Why there is no session.
        made: The checkpoint made again; there once it is.
    """

    parts: Parts
    settings: PruneConfig
    dense: PreTrainedModel
    processor: Processor
    session: Session | None = None
    why_not: str = ""
    made: Made = field(init=False)

    def checks(self) -> Iterator[Check]:
        """Makes the checkpoint again, and compares everything in it with what is stored."""
        yield checked("base weights", self._base)
        data = checked("calibration data", self._data)
        yield data
        self.why_not = "" if data.outcome == "ok" else f"calibration data {data.outcome}"
        with tempfile.TemporaryDirectory() as folder:
            made_again = checked("cut again", partial(self._remake, Path(folder)))
            yield made_again
            if made_again.outcome == "FAILED":
                return
            root = self.parts.run.root
            yield checked("tensors", partial(_same_names, root, self.made))
            yield checked("sliced tensors", self._same_slices)
            yield checked("refitted tensors", self._same_refits)
            yield checked("config fields", partial(_same_config, root, self.made))
            yield checked("other files", self._same_files)
        yield checked("logits", self._same_logits)

    @property
    def _keep(self) -> KeepIndices:
        return self.parts.arms.kept_units(self.parts.kept)

    @property
    def _layout(self) -> Layout:
        return self.parts.report.layout

    def _base(self) -> str:
        """Compares the base's weights with those that the run had."""
        recorded = self.parts.report.dense_sha256
        if not recorded:
            raise NotChecked("the report does not say which weights the run had")
        if sha256_of_weights(self.dense) != recorded:
            raise ValueError(f"they are not those that the run had{self._other_versions()}")
        return f"SHA-256 {recorded[:16]}..., as in the report"

    def _other_versions(self) -> str:
        """Warns where other versions than the run's may be why something differs."""
        here, there = installed_versions(), self.parts.report.versions
        other = [f"{name} {there.get(name)}, here {here[name]}" for name in VERSIONS if there.get(name) != here[name]]
        return f" (the run had {', '.join(other)}: try with the run's)" if other else ""

    def _data(self) -> str:
        """Opens the data of the run, where refits need them."""
        if self.parts.report.recovery is not None:
            raise NotChecked("recovery trained the weights, which cannot be made again")
        if self.settings.task.dataset.path == "in-memory":
            raise NotChecked("the data were given in Python")
        if not (recorded := self.parts.report.calibration_sha256):
            raise NotChecked("the report does not say which data the run had")
        try:
            splits = load_splits(self.settings.task, self.settings.seed)
        except Exception as error:  # of the data, the network or the disk
            raise NotChecked(f"the data are not there ({in_words(error)}); name them with --task.dataset") from error
        dtype = stored_dtype(stored_tensors(self.parts.run.root))
        accelerator = make_accelerator()
        session = make_session(self.settings, self.dense, self.processor, splits, accelerator, dtype)
        if sha256_of_batches(session.batches["calibration"]) != recorded:
            raise NotChecked(f"the data there are not those of the run: another SHA-256{self._other_versions()}")
        if session.compensation:  # which sites were taken back by its guard, the report says
            session = replace(session, compensation=replace(session.compensation, guard=False))
        self.session = session
        return f"SHA-256 {recorded[:16]}..., as in the report"

    def _remake(self, folder: Path) -> str:
        """Makes the checkpoint again."""
        made = remake(self.parts, self.settings, self.dense, self.processor, self.session, folder)
        self.made, how = made, "refitted" if self.parts.report.recovery is None else "trained"
        return f"{len(made.tensors):,} tensors, {len(made.not_sliced):,} of them {how}"

    def _same_slices(self) -> str:
        """Compares what neither a refit nor training changed, byte by byte."""
        made, count, wrong = self.made, 0, []
        for name, stored, again in made.pairs(self.parts.run.root):
            if name not in made.not_sliced:
                count += 1
                if not torch.equal(_bytes(stored), _bytes(again)):
                    wrong.append(f"{name} is no slice of the base's")
        if wrong:
            raise ValueError(f"{some(wrong)}{self._other_versions()}")
        if not count:
            raise NotChecked("recovery trained all weights")
        return f"{count:,} tensors are slices of the base's, byte for byte"

    def _same_refits(self) -> str:
        """Compares refitted tensors, number by number, within the tolerance."""
        made, worst, wrong = self.made, 0.0, []
        if not made.not_sliced:
            return "there are none"
        if self.parts.report.recovery is not None:
            raise NotChecked(f"recovery trained {len(made.not_sliced):,} tensors, which cannot be made again")
        if not self.session:
            raise NotChecked(f"{len(made.not_sliced):,} tensors, {sorted(made.not_sliced)[0]}, ...: {self.why_not}")
        for name, stored, again in made.pairs(self.parts.run.root):
            if name in made.not_sliced:
                distance = relative_distance(stored, again)
                worst = max(worst, distance)
                if not distance <= ON_REFITS:
                    wrong.append(f"{name} differs by {distance:.2g}")
        if wrong:
            limit = f"at most {ON_REFITS:g} of the root mean square of a tensor is rounding"
            raise ValueError(f"{some(wrong)}; {limit}{self._other_versions()}")
        return (
            f"{len(made.not_sliced):,} tensors, made again, differ by at most {worst:.2g} of the root mean square of "
            f"the tensor (up to {ON_REFITS:g} is taken for rounding)"
        )

    def _same_files(self) -> str:
        """Compares all other files, byte by byte, and looks for files that no run writes."""
        root, run = self.parts.run.root, RunFolder("")
        weights = {stored.file.name for stored in [*self.made.tensors.values(), *stored_tensors(root).values()]}
        passed = {CONFIG, str(run.card), *weights, *(f"{name}.index.json" for name in weights)}
        own = {path.as_posix() for path in (run.details, run.figures)}
        found = {name: path for name, path in checksums.visible_files(root) if name.split("/")[0] not in own}
        expected = dict(checksums.visible_files(self.made.folder))
        wrong = [f"{name} is not of this run" for name in sorted(found.keys() - expected.keys() - passed)]
        wrong += [f"{name} is missing" for name in sorted(expected.keys() - found.keys() - passed)]
        same = sorted((found.keys() & expected.keys()) - passed)
        wrong += [f"{name} is another" for name in same if found[name].read_bytes() != expected[name].read_bytes()]
        if wrong:
            raise ValueError(f"{some(wrong)}{self._other_versions()}")
        return ", ".join(same) or "there are none"

    @torch.inference_mode()
    def _same_logits(self) -> str:
        """Compares the masked base with the cut one, and runs the stored model, on test data."""
        if not self.session:
            raise NotChecked(self.why_not)
        dense, session = self.dense, self.session
        inputs = session.task.few_inputs(dense, session.batches["test"][-1])
        with masked(dense, masks=keep_masks(dense, self._keep)):
            by_mask = dense(**inputs)[0]
        difference = float((by_mask - cut(dense, self._keep, self._layout)(**inputs)[0]).abs().max())
        if not difference <= TOLERANCE.get(dense.dtype, HALF_TOLERANCE):
            raise ValueError(f"the masked base and the cut one differ by {difference:.2g}")
        stored = load_pruned(self.parts.run.root, dtype=dense.dtype).eval()(**inputs)[0]
        if not stored.isfinite().all():
            raise ValueError("those of the stored model are not finite")
        away = float((stored - by_mask).abs().max())
        return f"the masked base and the cut one differ by {difference:.2g}; the stored model, by {away:.2g}"


def relative_distance(stored: torch.Tensor, again: torch.Tensor) -> float:
    """Gives the largest difference of two numbers over the root mean square of a tensor, without what the rounding to
    half precision may explain; nan where a number is none."""
    exact, epsilon = again.double(), 2 * torch.finfo(again.dtype).eps if again.dtype != torch.float32 else 0.0
    beyond = ((stored.double() - exact).abs() - epsilon * exact.abs()).clamp(min=0)
    return float(beyond.max() / exact.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny))


def _same_names(root: Path, made: Made) -> str:
    """Compares names, shapes and types of all tensors."""
    stored = stored_tensors(root)
    if strange := sorted(stored.keys() ^ made.tensors.keys()):
        raise ValueError(f"{some(strange)}: not in both checkpoints")
    wrong = [
        f"{name} is {stored[name].dtype} {list(stored[name].shape)}, not {again.dtype} {list(again.shape)}"
        for name, again in sorted(made.tensors.items())
        if (stored[name].dtype, stored[name].shape) != (again.dtype, again.shape)
    ]
    if wrong:
        raise ValueError(some(wrong))
    return f"{len(stored):,} names, shapes and types are those of the base, cut again"


def _same_config(root: Path, made: Made) -> str:
    """Compares every field of config.json."""
    stored, again = read_json(root / CONFIG), read_json(made.folder / CONFIG)
    fields = sorted((stored.keys() | again.keys()) - FREE_FIELDS)
    wrong = [
        f"{field} is {json.dumps(stored.get(field)):.60}, not {json.dumps(again.get(field)):.60}"
        for field in fields
        if stored.get(field, ...) != again.get(field, ...)
    ]
    if wrong:
        raise ValueError(some(wrong))
    return f"all {len(fields)} are those of the base, cut again"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Views a tensor as its bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)

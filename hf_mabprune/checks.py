"""What can be refused before a model or data set is loaded."""

import os
from collections.abc import Sequence
from pathlib import Path

from hf_mabprune.artifacts.publish import check_name, checked_token
from hf_mabprune.artifacts.run_folder import SEARCH_STATE, RunFolder
from hf_mabprune.compensation import make_compensation
from hf_mabprune.config import PruneConfig, VocabularyConfig
from hf_mabprune.data.corpus import check_texts
from hf_mabprune.effects.rewards import check_reward
from hf_mabprune.recovery.recover import check_recovery
from hf_mabprune.runtime.accelerator import check_trackers
from hf_mabprune.runtime.files import is_claimed, is_output
from hf_mabprune.runtime.places import Protected
from hf_mabprune.runtime.resume import check_free
from hf_mabprune.search.run import make_criterion, make_policy, make_rule
from hf_mabprune.tasks.base import TASKS


def check_settings(settings: PruneConfig, resume: bool = False, protected: Sequence[Protected] = ()) -> None:
    """Refuses everything that can be refused before a model or data set is loaded.

    Args:
        settings: Run settings.
        resume: Whether an interrupted run goes on.
        protected: Places that the output must not take, beside what the settings name.

    Raises:
        ValueError, FileExistsError: With the rule, the value and the remedy.
    """
    check_choice(settings)
    for name in settings.output.criteria:
        make_criterion(name, settings.prune.kinds())
    check_texts((settings.prune.vocabulary or VocabularyConfig()).files())
    check_offload(settings, processes := int(os.environ.get("WORLD_SIZE", "1")))
    if settings.recovery:
        check_recovery(settings.recovery, processes)
    check_around(settings.output.dir)
    check_free(settings, RunFolder(settings.output.dir).under_way, resume, protected)
    check_trackers(settings.output.log_with)
    if settings.output.push_to_hub:
        check_name("output.push_to_hub", settings.output.push_to_hub)
        checked_token(None)


def check_choice(settings: PruneConfig) -> None:
    """Refuses components that there are not, or that do not go together: of what chooses, and of what refits.

    Args:
        settings: Run settings.

    Raises:
        ValueError: With the rule, the value and the remedy.
    """
    check_reward(settings.search.reward)
    make_policy(settings, 1)
    if settings.search.criterion is not None:
        make_criterion(settings.search.criterion, settings.prune.kinds())
    else:
        make_rule(settings)
    if settings.compensation:
        make_compensation(settings.compensation)
    if settings.task.type is not None:
        task = TASKS.get(settings.task.type)
        check_reward(settings.search.reward, task.predicts_classes, task.has_loss)


def check_offload(settings: PruneConfig, processes: int) -> None:
    """Refuses what a model cannot be part of whose layers are brought in one at a time.

    Args:
        settings: Run settings.
        processes: Number of processes of the launch.

    Raises:
        ValueError: With the remedy.
    """
    if settings.model.device_map is None:
        return
    if processes > 1:
        raise ValueError(
            f"model.device_map is for a model that one process runs, got {processes} processes: start one, or leave "
            "model.device_map out"
        )
    if settings.recovery:
        raise ValueError(
            "recovery trains all weights at once, and model.device_map keeps some elsewhere: set recovery: null and "
            "train the checkpoint afterwards, or leave model.device_map out"
        )
    if settings.prune.vocabulary:
        raise ValueError(
            "prune.vocabulary cuts embeddings in memory, and model.device_map keeps some elsewhere: leave one of the "
            "two out"
        )
    if settings.search.products != "auto":
        raise ValueError(
            f"search.products {settings.search.products} takes a second copy of all weights, and model.device_map "
            "keeps some elsewhere: set model.dtype instead, or leave model.device_map out"
        )


def check_around(folder: str | Path) -> None:
    """Refuses an output inside that of another run, which has ended, is under way or can be gone on with.

    Raises:
        FileExistsError: Naming that run.
    """
    for parent in Path(folder).absolute().parents:
        beside, is_state = RunFolder(parent).under_way, (parent / SEARCH_STATE).is_file()
        if is_claimed(parent) or is_claimed(beside.state) or beside.unfinished or is_state:
            raise FileExistsError(
                f"{folder} would lie in {parent}, which belongs to a run that is under way or interrupted: choose "
                "another output.dir"
            )
        if is_output(parent) and not Path(folder).exists():
            raise FileExistsError(f"{folder} would lie in {parent}, another run's output: choose another output.dir")

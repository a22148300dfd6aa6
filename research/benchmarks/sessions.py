"""Sessions that differ in little: the same model and data under other settings, for one search of a comparison."""

from dataclasses import replace
from typing import Any

from hf_mabprune.config import PruneConfig
from hf_mabprune.session import Session


def under(session: Session, settings: PruneConfig, **changes: Any) -> Session:
    """Gives the session under other settings, with all that is known of the dense model.

    Args:
        session: Model and data.
        settings: Settings of the search.
        changes: Further fields that differ, `arms` or `compensation`; model, task and batches may not.
    """
    other = replace(session, settings=settings, **changes)
    if other.compensation:  # the reference would be made anew, and with it the moments that all refits start from
        vars(other)["reference"] = session.reference
    return other

"""Kept units of sites at multiples that hardware likes. Pure: arrays in, arrays out."""

from collections.abc import Container, Mapping

import numpy as np

from hf_mabprune.arms import ArmTable, Bools, Ints


def round_widths(
    arms: ArmTable,
    order: Ints,
    kept: Bools,
    multiple: int,
    min_units: int = 1,
    tied: Container[str] = (),
    may_go: Container[str] = (),
) -> Bools:
    """Moves each layer's number of kept neurons to a multiple, up or down, so that their sum changes least.

    Args:
        arms: All arms of the model.
        order: [K], all arms, first removed first; decides which arms go or come back.
        kept: [K], arms that stay so far.
        multiple: Number that kept neurons are a multiple of; a layer that stays whole keeps its remainder.
        min_units: Neurons that every layer keeps at least.
        tied: Sites that are left as they are, since their sizes are multiples already.
        may_go: Sites that may keep nothing, where `min_units` is 0.

    Returns:
        [K], arms that stay. Heads are left as they are.
    """
    least = {
        site: max(min_units, site not in may_go)
        for site, rows in arms.groups()
        if arms.kind[rows[0]] == "neuron" and site not in tied
    }
    return round_units(arms, order, kept, dict.fromkeys(least, multiple), least)


def round_units(
    arms: ArmTable, order: Ints, kept: Bools, multiples: Mapping[str, int], least: Mapping[str, int]
) -> Bools:
    """Moves the kept units of sites to multiples, up or down, so that their sum changes least.

    Args:
        arms, order, kept: As in `round_widths`.
        multiples: Name of a site -> number that its kept units are a multiple of, unless all stay; sites that are not
            there are left as they are.
        least: Name of each of these sites -> units that it keeps at least.

    Returns:
        [K], arms that stay.
    """
    place = np.empty(len(arms), dtype=np.int64)
    place[order] = np.arange(len(arms))
    kept = kept.copy()
    surplus = 0.0  # units kept beyond what was asked for, carried from site to site
    for site, rows in arms.groups():
        if site in multiples:
            wanted = arms.units[rows[kept[rows]]].sum()
            safest_last = rows[np.argsort(-place[rows])]
            sizes = np.cumsum([0, *arms.units[safest_last]])
            enough = sizes >= min(least[site], sizes[-1])
            fits = np.flatnonzero(((sizes % multiples[site] == 0) | (sizes == sizes[-1])) & enough)
            choice = fits[np.argmin(np.abs(sizes[fits] - (wanted - surplus)))]
            surplus += float(sizes[choice] - wanted)
            kept[rows] = False
            kept[safest_last[:choice]] = True
    return kept

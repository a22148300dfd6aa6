"""A section of the page on one unit: its most and least activating inputs, before and after pruning.

python -m research.studies.interpretability.unit_page --data DIR --out runs/study --network googlenet \\
    --kind structured --rate 0.4 --schedule one-shot --section SECTION.md --figures FOLDER
python -m research.studies.interpretability.unit_page --data DIR --out runs/study --network text --text-model NAME \\
    --kind unstructured --rate 0.4 --schedule "one-shot, no training" --unit MODULE:NUMBER --section SECTION.md

Images are shown as a picture, texts as a table. The network is pruned anew, as the study has pruned it. Without
`--unit`, it is the most readable unit before pruning, of those that are left.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_mabprune.registry import nearest
from hf_mabprune.runtime.files import write_atomically
from research.studies.interpretability.activations import side_by_side, unit_names
from research.studies.interpretability.cells import Bench
from research.studies.interpretability.mis import extremes, unit_scores, varying
from research.studies.interpretability.page import TITLES
from research.studies.interpretability.plots import DPI
from research.studies.interpretability.protocol import IMAGE_MODEL, KINDS, NETWORKS, QUICK, SCHEDULES, TEXT, Protocol
from research.studies.interpretability.study import Study
from research.studies.interpretability.subjects import ImageSubject
from research.studies.interpretability.texts import ENCODER, TextSubject
from research.studies.paper.page import FIGURES, markdown

SHOWN = 9  # inputs at either end of an image unit
SHOWN_TEXTS = 4


@dataclass(frozen=True)
class Seen:
    """What a unit does in one network.

    Attributes:
        words: Which network.
        mis: Its score.
        activations: What each probe does to it, [P].
        varies: Whether any probe changes it.
    """

    words: str
    mis: float
    activations: torch.Tensor
    varies: bool

    def ends(self, count: int) -> tuple[list[int], list[int]]:
        """Gives the probes that activate it most and least, the very most and least first."""
        generator = torch.Generator().manual_seed(0)
        most, least = extremes(self.activations.unsqueeze(1), count, generator)
        return most[0].tolist(), least[0].tolist()


def look(bench: Bench, kind: str, rate: float, schedule: str, unit: str = "") -> tuple[str, Seen, Seen]:
    """Looks at a unit before and after pruning.

    Args:
        bench: Network, unpruned, and its probes.
        kind, rate, schedule: How it is pruned.
        unit: Module and number, `MODULE:NUMBER`; empty takes the most readable one that is left.

    Returns:
        Name of the unit, and what it does before and after.

    Raises:
        ValueError: If there is no such unit.
    """
    found = bench.subject.activations(bench.network)
    names, before = unit_names(found), side_by_side(found)
    if unit and unit not in names:
        raise ValueError(f"no unit '{unit}'.{nearest(unit, names)} There are {len(names)}, e.g. {names[0]}")
    network = deepcopy(bench.network)
    bench.pruned(network, kind, schedule, rate)
    after = side_by_side(bench.subject.activations(network))
    scores = [
        unit_scores(each, bench.subject.similarity, bench.protocol.trials, bench.seed).mis for each in (before, after)
    ]
    place = names.index(unit) if unit else int(torch.where(varying(after), scores[0], 0).argmax())
    words = ("before pruning", f"after pruning ({kind}, rate {rate:g}, {schedule})")
    seen = [
        Seen(told, score[place].item(), each[:, place], bool(varying(each)[place]))
        for told, score, each in zip(words, scores, (before, after), strict=True)
    ]
    return names[place], seen[0], seen[1]


def section(bench: Bench, name: str, seen: tuple[Seen, Seen], figures: Path) -> str:
    """Writes the section on a unit, and its picture, where its inputs are images.

    Args:
        bench: What it was looked at with.
        name: Name of the unit.
        seen: What it does before and after.
        figures: Folder of pictures.
    """
    title = TITLES.get(bench.name, bench.name)
    parts = [f"## One unit: {name} of {title[0].lower() + title[1:] if title.startswith('A ') else title}"]
    parts.append(f"Similarity: {bench.subject.similarity_name}.")
    for each in seen:
        gone = "" if each.varies else " No probe changes it: it was pruned away."
        parts.append(f"{each.words[0].upper() + each.words[1:]}: MIS {each.mis:.3f}.{gone}")
    if isinstance(bench.subject, TextSubject):
        parts.append(texts_table(bench.subject.probes.texts, seen))
    elif isinstance(bench.subject, ImageSubject):
        picture = f"interpretability-unit-{bench.name}.png"
        figures.mkdir(parents=True, exist_ok=True)
        grid(bench.subject.images.probe_pixels, seen).savefig(figures / picture, dpi=DPI, metadata={"Software": None})
        parts.append(f"![Most and least activating probes, before and after pruning]({FIGURES}/{picture})")
    return "\n\n".join(parts) + "\n"


def texts_table(texts: Sequence[str], seen: tuple[Seen, Seen]) -> str:
    """Makes a table of the texts at either end, before and after."""
    columns: dict[str, list[str]] = {}
    for each in seen:
        for words, ends in zip(("most", "least"), each.ends(SHOWN_TEXTS), strict=True):
            shown = [texts[at].strip().replace("|", "\\|") for at in ends]
            columns[f"{words} activating, {each.words.split(' (')[0]}"] = shown
    return markdown(pd.DataFrame(columns))


def grid(pixels: np.ndarray, seen: tuple[Seen, Seen]) -> Figure:
    """Draws the images at either end, [P, S, S, 3]: two rows before, two after."""
    figure = Figure(figsize=(SHOWN * 0.75 + 1.6, 4 * 0.75 + 0.6))
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, SHOWN)
    rows = [
        (each, words, ends) for each in seen for words, ends in zip(("most", "least"), each.ends(SHOWN), strict=True)
    ]
    for line, (each, words, ends) in zip(panels, rows, strict=True):
        for panel, at in zip(line, ends, strict=True):
            panel.imshow(pixels[at])
            panel.set_axis_off()
        line[0].text(
            -0.15, 0.5, f"{words},\n{each.words.split(' (')[0]}",
            transform=line[0].transAxes, ha="right", va="center", fontsize=8,
        )  # fmt: skip
    figure.subplots_adjust(left=0.17, right=0.99, top=0.98, bottom=0.02, wspace=0.05, hspace=0.05)
    return figure


def main() -> None:
    """Parses, looks, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and sst2/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, with its networks")
    parser.add_argument("--quick", action="store_true", help="that of the quick setting")
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="one-shot")
    parser.add_argument("--unit", default="", help="MODULE:NUMBER; the most readable one without")
    parser.add_argument("--text-model", default="", help="text classifier, folder or Hub name")
    parser.add_argument("--image-model", default="", help="image classifier, folder or Hub name")
    parser.add_argument("--encoder", default=ENCODER, help="sentence encoder that texts are compared with")
    parser.add_argument("--section", type=Path, required=True, help="file of the section")
    parser.add_argument("--figures", type=Path, default=Path("docs") / FIGURES, help="folder of pictures")
    options = parser.parse_args()
    for network, model in ((TEXT, options.text_model), (IMAGE_MODEL, options.image_model)):
        if options.network == network and not model:
            parser.error(f"--network {network} takes --{network}-model")
    protocol = QUICK if options.quick else Protocol()
    models = options.text_model, options.encoder, options.image_model
    bench = Study(options.data, options.out, protocol, *models).bench(options.network, options.seed)
    name, before, after = look(bench, options.kind, options.rate, options.schedule, options.unit)
    write_atomically(options.section, section(bench, name, (before, after), options.figures).encode())


if __name__ == "__main__":
    main()

"""Export: from a stored checkpoint to what another program runs, checked before it is kept."""

from pathlib import Path

import torch

from hf_mabprune.checkpoints.load import load_pruned, processor_beside
from hf_mabprune.checks import check_around
from hf_mabprune.exports import EXPORTS
from hf_mabprune.progress import stage
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.places import Protected, check_output_dir


@stage("export")
def export_checkpoint(checkpoint: str | Path, to: str, output: str | Path) -> float:
    """Writes a checkpoint in another format into a folder of its own, tokenizer and config beside it.

    The folder is there when what was written gives the outputs of the model, and not before.

    Args:
        checkpoint: Folder or Hub name of a model, pruned or not.
        to: Name of a registered export.
        output: New folder.

    Returns:
        Largest absolute difference of two outputs.

    Raises:
        ValueError: If the export is unknown, lacks a package or cannot take the model, or its outputs differ from the
            model's.
        FileExistsError: If there is something at `output` already.
        OSError: If there is no such checkpoint, or nothing can be written.
    """
    destination = EXPORTS.get(to)
    destination.check_installed(to)
    export = destination()
    check_output_dir(output, False, [Protected("the checkpoint", Path(checkpoint), whole=True)])
    check_around(output)
    model = load_pruned(checkpoint, dtype=torch.float32).eval()
    export.check(model)
    processor = processor_beside(model, str(checkpoint))
    with atomic_folder(output) as folder:
        export.write(model, processor, folder)
        difference = export.difference(model, folder)
        if not difference <= export.tolerance:
            raise ValueError(
                f"export {to} of {checkpoint} does not give what the model gives: outputs differ by {difference:.3g}, "
                f"more than {export.tolerance:g}; nothing was kept"
            )
        model.config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    return difference

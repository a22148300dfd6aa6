"""Where the files of a run lie: the one place that spells their paths.

    DIR/                            the checkpoint: weights, config.json, tokenizer or processor
      README.md, figures/           model card
      .eval_results/                the result on a data set of the Hub, as its benchmarks read it
      mabprune/                     details: config.yaml, report.json, arms.parquet, examples.parquet,
                                    search_state.safetensors, and SHA256SUMS of all files
    DIR.html                        what `mabprune report` makes of it
    DIR.state/                      lock, config.yaml and search_state.safetensors, while the run goes on
    DIR.logs/                       what trackers write that write files

A run that was asked for several sizes has such a folder DIR/SIZE for each of them, and in DIR itself an overview:
README.md, figures/, mabprune/config.yaml and mabprune/SHA256SUMS.
"""

from pathlib import Path

import pandas as pd

from hf_mabprune.artifacts import checksums
from hf_mabprune.evaluation.report import Report
from hf_mabprune.runtime.run_paths import RunPaths

SEARCH_STATE = "search_state.safetensors"
ARMS_COLUMNS = {"site", "kind", "layer", "start", "stop", "pulls", "mean", "removed_round", "order"}


class RunFolder:
    """What a run leaves behind, by name. Making one touches no file.

    Args:
        root: Folder of the run, its `output.dir`; or of one of several sizes.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def card(self) -> Path:
        """README.md, which the Hub shows."""
        return self.root / "README.md"

    @property
    def figures(self) -> Path:
        """Folder of the PNG files that the card shows."""
        return self.root / "figures"

    @property
    def eval_results(self) -> Path:
        """The result that the Hub's benchmarks read."""
        return self.root / ".eval_results" / "hf_mabprune.yaml"

    @property
    def details(self) -> Path:
        """Folder of all that is no part of the checkpoint."""
        return self.root / "mabprune"

    @property
    def config(self) -> Path:
        """The exact settings of the run, resolved."""
        return self.details / "config.yaml"

    @property
    def report(self) -> Path:
        """Every figure of the run, as `evaluation.report.Report` writes them."""
        return self.details / "report.json"

    @property
    def arms(self) -> Path:
        """The table of arms, one row an arm."""
        return self.details / "arms.parquet"

    @property
    def examples(self) -> Path:
        """What both models said of each test example, numbers alone; it is never published."""
        return self.details / "examples.parquet"

    @property
    def page(self) -> Path:
        """The page of `mabprune report`, beside the root, so that no push takes it along."""
        return self._beside(".html")

    @property
    def sparsity(self) -> Path:
        """The figures of `mabprune sparsify`, which leaves no report of a run."""
        return self.details / "sparsity.json"

    @property
    def search_state(self) -> Path:
        """The search as it was saved last."""
        return self.details / SEARCH_STATE

    @property
    def checksums(self) -> Path:
        """The checksums of every other file, as `sha256sum` writes them."""
        return self.details / "SHA256SUMS"

    @property
    def logs(self) -> Path:
        """Folder beside the root for trackers that write files, where the settings name no other."""
        return self._beside(".logs")

    @property
    def under_way(self) -> RunPaths:
        """The files of the run while it goes on, for `runtime.resume`."""
        state = self._beside(".state")
        return RunPaths(
            output=self.root,
            written=self.config,
            logs=self.logs,
            state=state,
            lock=state / "lock",
            config=state / self.config.name,
            search=state / SEARCH_STATE,
            unpublished=state / "unpublished",
        )

    def size(self, name: str) -> "RunFolder":
        """Gives the folder of one of several sizes."""
        return RunFolder(self.root / name)

    def sizes(self) -> list["RunFolder"]:
        """Finds the folders of the sizes that are there, by name; none in the folder of a run with one size."""
        pattern = self.size("*").arms.relative_to(self.root)
        return [RunFolder(path.parents[1]) for path in sorted(self.root.glob(str(pattern)))]

    def read(self) -> tuple[pd.DataFrame, Report]:
        """Reads the table of arms and the report of a finished run, or of the first of its sizes.

        Returns:
            The table, [K rows] with the columns of `SearchResult.table`, and the report.

        Raises:
            ValueError: If the folder holds no finished run, or one of another version.
        """
        run = next((run for run in [self, *self.sizes()] if run.arms.exists()), None)
        if run is None or not run.report.exists():
            raise ValueError(
                f"{self.root} holds no finished run: no {self.details.name}/{self.arms.name} and {self.report.name} "
                "in it"
            )
        try:
            arms = pd.read_parquet(run.arms)
        except ValueError as error:  # some versions of pandas do not name the file
            raise ValueError(f"{run.arms} cannot be read: {error}") from error
        if missing := ARMS_COLUMNS - set(arms.columns):
            raise ValueError(f"{run.arms} is not of this version of hf_mabprune: no column {min(missing)}")
        return arms, Report.from_json(run.report)

    def check_unchanged(self) -> None:
        """Refuses a run whose settings, report, arms or saved search are not what it wrote.

        Raises:
            ValueError: Naming the file, or saying that there are no checksums to tell by.
        """
        sizes = self.sizes()
        for folder in [self, *sizes[:1]] if sizes else [self]:
            if not folder.details.is_dir():
                continue  # `read` says that there is no run
            listed = checksums.read(folder.root, folder.checksums)
            for path in (folder.config, folder.report, folder.arms, folder.search_state):
                name = path.relative_to(folder.root).as_posix()
                there = path.exists() or path.is_symlink()
                fault = "is not in the list" if there and name not in listed else ""
                if name in listed:
                    fault = checksums.fault_of(path, listed[name]) if there else "is missing"
                if fault:
                    raise ValueError(
                        f"{path} {fault}, says {folder.checksums.name}: bring back the folder as the run wrote it, or "
                        "make the run again"
                    )

    def _beside(self, ending: str) -> Path:
        return Path(f"{self.root}{ending}")

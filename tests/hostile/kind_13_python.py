"""Kind 13: data sets in all forms that Python knows, callers in all states; and options of files that are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from tests.cli.world import SPLITS
from tests.hostile.case import Case, Done, Expected, one, prune
from tests.hostile.mutations import Random
from tests.hostile.prepared import edit_yaml
from tests.hostile.programs import program

FORMS: tuple[tuple[str, Expected], ...] = (
    ("x = x.with_format('numpy')", "equal"),
    ("x = x.with_format('torch')", "equal"),
    ("x = x.with_format('pandas')", "equal"),
    ("x = x.with_format('arrow')", "equal"),
    ("x = x.with_format('numpy', columns=['sentence'])", "equal"),
    ("x.set_format('torch', columns=['label'])", "equal"),
    ("x = x.with_format('python')", "equal"),
    ("x = x.with_format('jax')", "equal"),
    ("x = x.with_transform(lambda rows: rows)", "warned"),
    ("x = x.with_transform(lambda rows: {'sentence': [t.upper() for t in rows['sentence']]})", "any"),
    ("x = x.with_transform(lambda rows: 1 / 0)", "any"),
    ("x = x.to_iterable_dataset()", "equal"),
    ("x = x.to_pandas()", "equal"),
    ("x = x.to_list()", "equal"),
    ("x = x.to_dict()", "equal"),
    ("x = iter(x.to_list())", "equal"),
    ("x = (row for row in x)", "equal"),
    ("x = list(zip(x['sentence'], x['label']))", "any"),
    ("x = x.data.table", "equal"),
    ("x = x['sentence']", "any"),
    ("x = None", "refused"),
    ("x = []", "refused"),
    ("x = 'data/train.parquet'", "any"),
    ("x = 7", "refused"),
    ("x = np.arange(5)", "refused"),
    ("x = x.to_pandas().to_numpy()", "any"),
    ("x = datasets.DatasetDict({'train': x})", "any"),
    ("x = {'train': x}", "any"),
    ("x = torch.utils.data.DataLoader(x)", "any"),
    ("x = torch.utils.data.Subset(x, range(40))", "any"),
    ("x = x.select([])", "refused"),
    ("x = x.select([0])", "any"),
    ("x = x.rename_column('sentence', 'text')", "any"),
    ("x = x.remove_columns('label')", "refused"),
    ("x = x.remove_columns('sentence')", "refused"),
    ("x = x.cast_column('label', datasets.ClassLabel(names=['no', 'yes']))", "equal"),
    ("x = x.cast_column('label', datasets.Value('string'))", "any"),
    ("x = x.cast_column('label', datasets.Value('float32'))", "any"),
    ("x = x.cast_column('label', datasets.Value('int8'))", "equal"),
    ("x = x.cast_column('sentence', datasets.Value('large_string'))", "equal"),
    ("x = x.cast_column('label', datasets.Value('bool'))", "any"),
    ("x = x.cast_column('label', datasets.Value('uint64'))", "equal"),
    ("x = x.add_column('label2', [0] * len(x))", "any"),
    ("x = x.map(lambda row: {'label': [row['label']]})", "any"),
    ("x = x.map(lambda row: {'label': None})", "refused"),
    ("x = x.map(lambda row: {'sentence': None})", "refused"),
    ("x = x.map(lambda row: {'sentence': [row['sentence']]})", "any"),
    ("x = x.map(lambda row: {'sentence': {'text': row['sentence']}})", "any"),
    ("x = x.shuffle(seed=3)", "any"),
    ("x = x.to_pandas(); x.index = x.index * 7 + 3", "equal"),
    ("x = x.to_pandas().astype({'sentence': 'category'})", "equal"),
    ("x = x.to_pandas().convert_dtypes()", "equal"),
    ("x = x.to_pandas(); x['label'] = x['label'].astype(object)", "equal"),
    ("x = x.to_pandas(); x.columns = ['sentence', 'sentence']", "refused"),
    ("x = x.to_pandas(); x.loc[3, 'label'] = float('nan')", "refused"),
    ("x = x.to_pandas(); x.loc[3, 'sentence'] = float('nan')", "refused"),
    ("x = x.to_pandas().set_index('sentence')", "any"),
    ("x = x.to_list(); x[3] = {}", "refused"),
    ("x = x.to_list(); x[3] = 7", "refused"),
    ("x = x.to_list(); x[3]['label'] = 'x'", "refused"),
    ("x = tuple(x.to_list())", "equal"),
    ("x = x.to_dict(); x['label'] = x['label'][:-1]", "refused"),
    ("x = x.to_iterable_dataset().map(lambda row: row)", "equal"),
    ("x = x.to_iterable_dataset(num_shards=4)", "any"),
    ("x = x.to_iterable_dataset().filter(lambda row: False)", "refused"),
    ("x = x.to_iterable_dataset().map(lambda row: 1 / 0)", "refused"),
    ("x = x.flatten()", "equal"),
    ("x = x.sort('label')", "any"),
    ("x = Dataset.from_dict({'sentence': x['sentence'], 'label': np.array(x['label'])})", "equal"),
    ("import collections; x = collections.UserList(x.to_list())", "any"),
    ("x = type(x)", "refused"),
    ("x = lambda: 7", "refused"),
)
CALLERS: tuple[tuple[str, str], ...] = (
    ("with torch.no_grad():", ""),
    ("with torch.inference_mode():", ""),
    ("with torch.set_grad_enabled(False):", ""),
    ("", "torch.set_grad_enabled(False)"),
    ("with torch.autocast('cpu', dtype=torch.bfloat16):", ""),
    ("with torch.autograd.set_detect_anomaly(True):", ""),
    ("", "torch.set_default_dtype(torch.float64)"),
    ("", "torch.use_deterministic_algorithms(True)"),
    ("with torch.device('meta'):", ""),
    ("with torch.device('cpu'):", ""),
    ("", "torch.set_num_threads(1)"),
    ("", "import os; os.chdir('data'); os.chdir('..')"),
    ("", "model.train()"),
    ("", "model.requires_grad_(False)"),
    ("", "model = model.to(torch.float64)"),
    ("with torch.enable_grad():", ""),
    ("", "import warnings; warnings.simplefilter('error')"),
    ("", "sys.setrecursionlimit(300)"),
    ("", "import gc; gc.disable()"),
    ("", "import numpy; numpy.seterr(all='raise')"),
    ("", "import random; random.seed(1); np.random.seed(2); torch.manual_seed(3)"),
    ("", "torch.set_default_device('cpu')"),
    ("with torch.random.fork_rng():", ""),
    ("", "import logging; logging.disable(logging.CRITICAL)"),
    ("", "tokenizer.padding_side = 'left'"),
    ("", "tokenizer.truncation_side = 'left'"),
    ("", "model.config.use_cache = False"),
    ("", "tokenizer.model_max_length = 5"),
)
SAME = """
import random
after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
         torch.is_grad_enabled(), torch.get_default_dtype(), model.training,
         [p.requires_grad for p in model.parameters()], [p.sum().item() for p in model.parameters()],
         torch.get_num_threads())
names = ("random", "numpy.random", "torch random", "grad", "dtype", "training", "requires_grad", "weights", "threads")
for name, one, other in zip(names, before, after):
    if one != other:
        print(f"CHANGED {name}")
"""
BEFORE = SAME.split("after = ")[0] + "before = " + SAME.split("after = ")[1].split("names = ")[0]


def forms(rng: Random) -> Case:
    """One or all of the data sets come in another form."""
    change, expects = rng.choice(FORMS)
    names = rng.choice([("calibration", "validation", "test"), ("calibration",), ("test",), ("validation",)])
    lines = "\n".join(f"x = {name}\n{change}\n{name} = x" for name in names)
    return one(f"{change[:70]} for {', '.join(names)}", (), expects, program=program(after_data=lines))


def leaves_the_caller_alone(done: Done) -> str | None:
    """What belongs to the caller is as it was."""
    changed = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("CHANGED ")]
    return f"prune() changed the caller's {', '.join(changed)}" if changed else None


def callers(rng: Random) -> Case:
    """The caller is in a state of its own, which is left as it is."""
    around, line = rng.choice(CALLERS)
    # A model in another precision, and other ways to truncate, give another result.
    mine = any(word in line + around for word in ("float64", "autocast", "side", "max_length", "meta"))
    check = "" if around else SAME
    return one(
        f"caller: {around}{line}",
        (),
        "any" if mine else "passes",
        program=program(line, BEFORE, around, check),
        checks=(leaves_the_caller_alone,),
    )


def arguments(rng: Random) -> Case:
    """Other arguments of prune()."""
    line = rng.choice(
        [
            "tokenizer = None",
            "tokenizer = 'models/bert'",
            "tokenizer = model",
            "options['task'] = {'batchsize': 8}",
            "options['task'] = 7",
            "options['task'] = []",
            "options['search'] = {'rounds': 'x'}",
            "options['output'] = {'dir': 'other'}",
            "options['output'] = {'push_to_hub': 'a b'}",
            "options['compensation'] = 7",
            "options['compensation'] = {}",
            "options['seed'] = -1",
            "options['seed'] = 'x'",
            "options['seed'] = True",
            "options['recovery'] = {'epochs': -1}",
            "options['resume'] = 'yes'",
            "options['prune'] = {'target': {'macs': 0.5}}",
            "options['task'] = {'dataset': {'path': 'x'}}",
            "options['task'] = None",
            "options['search'] = {'policy': object()}",
            "options['task'] = {'metrics': [len]}",
            "options['task'] = {'columns': {'text': 7}}",
            "options['search'] = np.arange(3)",
            "options['task'] = {'splits': {'test': 'x'}}",
            "options['output'] = {'log_with': 'tensorboard'}",
            "options['output'] = {'log_with': object()}",
            "options['seed'] = np.int64(3)",
            "options['task'] = {'batch_size': np.int64(8)}",
            "options['prune'] = {'block_size': np.float32(8)}",
            "options['output'] = {'random_seeds': torch.tensor(1)}",
            "options['task'] = {'max_length': 10**9}",
            "model = AutoTokenizer",
            "model.config.pad_token_id = 99",
            "model.config.num_labels = 5",
            "import copy; model = copy.deepcopy(model)",
        ]
    )
    return one(f"argument: {line}", (), "any", program=program(after_data=line))


def written(folder: Path, kind: str, **options: Any) -> None:
    """Writes the splits in another format, which the settings name."""
    for split in SPLITS:
        table = Dataset.from_parquet(
            str(folder / f"data/{split}.parquet"), cache_dir=str(folder.parent / "tmp2")
        ).to_pandas()
        path = folder / f"data/{split}.{kind}"
        if kind == "csv":
            table.to_csv(path, index=False, **options)
        else:
            table.to_json(path, orient="records", **options)


def files(rng: Random) -> Case:
    """Files with options of their own: the result is that of the same rows, or a refusal in one line."""
    kind, options, key = rng.choice(
        [
            ("csv", {}, {}),
            ("csv", {"sep": ";"}, {"sep": ";"}),
            ("csv", {"sep": "\t"}, {"sep": "\t"}),
            ("csv", {"sep": "\t"}, {"delimiter": "\t"}),
            ("csv", {"quoting": 1}, {"quoting": 1}),
            ("csv", {"encoding": "utf-16"}, {"encoding": "utf-16"}),
            ("csv", {"header": False}, {"column_names": ["sentence", "label"]}),
            ("csv", {"sep": ";"}, {}),
            ("csv", {}, {"keep_default_na": False}),
            ("csv", {}, {"sepp": ";"}),
            ("csv", {}, {"sep": 7}),
            ("csv", {}, {"chunksize": -1}),
            ("csv", {}, {"converters": "x"}),
            ("csv", {"na_rep": "NA"}, {"keep_default_na": False}),
            ("json", {"lines": True}, {}),
            ("json", {}, {}),
            ("json", {"lines": True}, {"field": "x"}),
            ("csv", {}, {"skiprows": 1}),
            ("csv", {}, {"usecols": ["label"]}),
            ("csv", {}, {"memory_map": True}),
            ("csv", {"compression": "gzip"}, {}),
            ("csv", {}, {"on_bad_lines": "evil"}),
            ("json", {"lines": True, "compression": "gzip"}, {}),
        ]
    )

    def harm(folder: Path) -> None:
        written(folder, kind, **options)
        settings: dict[str, Any] = {
            "task.dataset": {"path": kind, "data_files": {split: f"data/{split}.{kind}" for split in SPLITS}}
        }
        if key:
            settings["task.dataset"][where] = key
        edit_yaml(folder / "run.yaml", settings)

    where = rng.choice(["options", "options", "kwargs", "loader", "load_options"])
    return one(f"{kind} {options} read with {where} {key}", prune(), "equal", harm=harm)


def texts(rng: Random) -> Case:
    """Texts that a reader of CSV takes for nothing."""
    text = rng.choice(["NA", "null", "None", "nan", "", "N/A", "n/a", "-", "1", "1e5", "true", '"', "a,b", "a\nb"])

    def harm(folder: Path) -> None:
        for number, split in enumerate(SPLITS):
            table = Dataset.from_parquet(
                str(folder / f"data/{split}.parquet"), cache_dir=str(folder.parent / "tmp2")
            ).to_pandas()
            table.loc[number, "sentence"] = text
            table.to_csv(folder / f"data/{split}.csv", index=False)
        edit_yaml(
            folder / "run.yaml",
            {"task.dataset": {"path": "csv", "data_files": {split: f"data/{split}.csv" for split in SPLITS}}},
        )

    return one(f"a text {text!r} in CSV", prune(), "any", harm=harm)


THEMES = (forms, forms, callers, arguments, files, forms, texts)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

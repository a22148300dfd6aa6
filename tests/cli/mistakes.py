"""Mistakes in the settings of a run, and what the one line says that the user reads of each."""

from dataclasses import dataclass, field
from typing import Any

from tests.cli.world import SPLITS

LLAMA = {"model.name": "models/llama", "task.columns": {"text": "sentence"}, "task.max_length": 8}


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        says: Parts of the one line that the user reads.
        settings: Dotted key -> value, as it stands in the YAML file.
        overrides: Dotted options on the command line.
        weights: Whether it takes the model's weights to find out.
    """

    says: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    weights: bool = False


def case(*says: str, overrides: tuple[str, ...] = (), weights: bool = False, **settings: Any) -> Case:
    """`model__name` stands for `model.name`, and `model` alone for a folder of that name below models."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    if isinstance(named.get("model"), str):
        named["model.name"] = f"models/{named.pop('model')}"
    return Case(says, named, overrides, weights)


def data(name: str) -> dict[str, Any]:
    """Settings that take every split from a file of its own, all with the same fault."""
    return {"task__dataset__data_files": {split: f"data/{split}/{name}.parquet" for split in SPLITS}}


def splits(calibration: str = "train", validation: str = "validation", test: str = "test") -> dict[str, Any]:
    """Settings that name slices."""
    return {"task__splits": {"calibration": calibration, "validation": validation, "test": test}}


def language_model(**settings: Any) -> dict[str, Any]:
    """Settings of a run on the language model."""
    return {key.replace(".", "__"): value for key, value in LLAMA.items()} | settings


SETTINGS = {
    "unknown_part": case("unknown key 'serch'. Did you mean 'search'?", serch={"rounds": 3}),
    "unknown_key": case("unknown key 'search.raunds'. Did you mean 'search.rounds'?", search__raunds=3),
    "unknown_override": case(
        "unknown key 'prune.bloksize'. Did you mean 'prune.block_size'?", overrides=("--prune.bloksize", "8")
    ),
    "unknown_target": case("unknown key 'prune.target.neuron'. Did you mean", prune__target={"neuron": 0.5}),
    "word_for_number": case("search.rounds must be an integer > 0, or null, got 'many'", search__rounds="many"),
    "word_for_truth": case("output.overwrite must be true or false, got 'perhaps'", output__overwrite="perhaps"),
    "list_for_part": case("search must be a mapping, got [1, 2]", search=[1, 2]),
    "word_for_part": case("task must be a mapping, got 'glue'", task="glue"),
    "word_for_policy": case("search.policy must be a mapping, got 'ucb1'", search__policy="ucb1"),
    "word_for_list": case("task.metrics must be a list of strings, got 'accuracy'", task__metrics="accuracy"),
    "word_for_files": case(
        "task.dataset.data_files must be a mapping, or null, got 'data/train.parquet'",
        task__dataset__data_files="data/train.parquet",
    ),
    "null_model": case("model.name", model__name=None),
    "negative_seed": case("seed must be an integer >= 0, got -1", seed=-1),
    "no_batch": case("task.batch_size must be an integer > 0, got 0", task__batch_size=0),
    "no_examples": case("task.calibration_examples must be an integer > 0, got 0", task__calibration_examples=0),
    "endless_budget": case("'.inf' is no finite number", search__pulls_per_arm=float("inf")),
    "half_a_key": case("unknown key 'prune.target.mac'", overrides=("--prune.target.mac", "0.3")),
    "unknown_dtype": case("model.dtype must be auto | float32 | bfloat16 | float16, got 'int8'", model__dtype="int8"),
    "unknown_policy": case("unknown policy 'ucb2'. Did you mean 'ucb1'? Known: ", search__policy={"name": "ucb2"}),
    "nameless_policy": case("policy needs a name, e.g. {name: ucb1}, got None", search__policy={"c": 1.0}),
    "unknown_option": case(
        "policy 'ucb1' has no option 'memry'. Did you mean 'memory'? Its options: c, memory, rank_by",
        search__policy={"name": "ucb1", "memry": 1.0},
    ),
    "option_out_of_range": case("memory must be in [0, 1], got 2.0", search__policy={"name": "ucb1", "memory": 2}),
    "option_nan": case("'.nan' is no finite number", search__policy={"name": "ucb1", "c": float("nan")}),
    "option_of_wrong_type": case(
        "policy 'ucb1': c: ", "valid number", "got 'big'", search__policy={"name": "ucb1", "c": "big"}
    ),
    "unknown_reward": case("unknown reward 'kll'. Did you mean 'kl'? Known: ", search__reward="kll"),
    "target_above_1": case(
        "prune.target.neurons must be a number > 0 and < 1, ", "got 1.5", prune__target={"neurons": 1.5}
    ),
    "target_0": case("prune.target.macs must be a number > 0 and < 1, ", "got 0", prune__target={"macs": 0}),
    "target_in_percent": case(
        "prune.target.parameters must be a number > 0 and < 1, ",
        "got '30%'",
        overrides=("--prune.target.parameters", "30%"),
    ),
    "two_kinds_of_targets": case(
        "target must be one of: neurons, heads and / or experts, layers, parameters, layer_parameters, macs, bytes, "
        "memory, latency",
        prune__target={"neurons": 0.5, "macs": 0.2},
    ),
    "no_target": case(
        "target must be one of: neurons, heads and / or experts, layers, parameters, layer_parameters, macs, bytes, "
        "memory, latency",
        prune__target={},
    ),
    "list_that_shrinks": case(
        "target.neurons must be a list that grows, e.g. [0.3, 0.5]", prune__target={"neurons": [0.5, 0.3]}
    ),
    "unequal_lists": case(
        "lists of neurons, heads, experts go together, so they must be equally long",
        prune__target={"neurons": [0.3, 0.5], "heads": [0.2, 0.3, 0.4]},
    ),
    "empty_list": case("prune.target.neurons must be", "a non-empty list", "got []", prune__target={"neurons": []}),
    "arms_without_the_targets": case("target.heads is set, but arms does not contain head", prune__arms=["neuron"]),
    "unknown_arms": case(
        "prune.arms must be a non-empty list of neuron | head | expert | layer, got 'block'", prune__arms=["block"]
    ),
}
TARGETS = {
    **{
        f"{kind}_in_{layout}": case(
            f"target.{kind} {asked} cannot be met in layout {layout}",
            f"the nearest that can is {nearest}",
            weights=True,
            **language_model(prune__target={kind: asked}, prune__layout=layout),
        )
        for layout in ("per_layer", "uniform")
        for kind, asked, nearest in (("parameters", 0.9, 0.548), ("neurons", 0.99, 0.833), ("heads", 0.9, 0.5))
    },
    "layout_auto": case(
        "target.parameters 0.9 cannot be met",
        "the nearest that can is 0.56",
        weights=True,
        prune__target={"parameters": 0.9},
        prune__layout="auto",
    ),
    "less_than_an_arm": case(
        "target.neurons 0.0001 cannot be met",
        "the nearest that can is 0.0833",
        weights=True,
        prune__target={"neurons": 0.0001},
    ),
    "min_heads_that_leave_nothing": case(
        "target.heads 0.5 cannot be met", "nothing can go: lower", weights=True, prune__min_heads=4
    ),
    "min_neurons_that_leave_nothing": case(
        "target.neurons 0.5 cannot be met", "nothing can go: lower", weights=True, prune__min_neurons=48
    ),
    "blocks_larger_than_a_layer": case("nothing can go: lower block_size", weights=True, prune__block_size=1000),
    "uneven_blocks_in_uniform": case(
        "the last one of a layer's 48 neurons is smaller: use a block_size that divides that number, or per_layer",
        weights=True,
        prune__block_size=20,
        prune__layout="uniform",
        prune__target={"neurons": 0.5},
    ),
    "heads_of_bert_in_uniform": case(
        "a stock bert config cannot say",
        "Use layout per_layer, or prune neurons only",
        weights=True,
        prune__layout="uniform",
    ),
}
MODELS = {
    "no_folder": case("model 'models/nope' is no folder in ", model="nope"),
    "absolute_folder": case("model '/nope/model' is no folder", model__name="/nope/model"),
    "hub_name_without_network": case(
        "model 'bert-base-uncased' is no folder", "Check your internet connection", model__name="bert-base-uncased"
    ),
    "no_hub_name": case("model 'my model' is no folder", "alphanumeric", model__name="my model"),
    "file": case("data/words.json holds no config.json", model__name="data/words.json"),
    "no_config": case(
        "models/no_config holds no config.json: give the folder that a model was saved to", model="no_config"
    ),
    "no_json": case("models/no_json/config.json cannot be read", "not a valid JSON", model="no_json"),
    "misspelt_type": case("models/misspelt/config.json cannot be read", "`brt`", model="misspelt"),
    "mistyped_size": case("models/mistyped/config.json cannot be read", "'hidden_size'", "'big'", model="mistyped"),
    "impossible_sizes": case(
        "models/odd_heads cannot be loaded", "(32) is not a multiple", "(5)", model="odd_heads", weights=True
    ),
    "unknown_architecture": case(
        "model type 'megatron-bert' is not supported yet. Adding it is one file, in hf_mabprune/architectures/ or "
        'your own (--plugin FILE); CONTRIBUTING.md, "Add an architecture", has the recipe. Supported: albert, ',
        model="megatron",
    ),
    "quantised": case("the model is quantised", "Prune first, then quantise", model="quantised"),
    "adapter": case("models/adapter is an adapter: merge it first (PeftModel.merge_and_unload)", model="adapter"),
    "no_weights": case("no file named model.safetensors", "models/no_weights", model="no_weights", weights=True),
    "truncated_weights": case(
        "models/truncated/model.safetensors cannot be loaded",
        "file not fully covered",
        "save the model again",
        model="truncated",
        weights=True,
    ),
    "web_page_for_weights": case(
        "models/web_page/model.safetensors cannot be loaded", "header too large", model="web_page", weights=True
    ),
    "broken_bin": case("models/broken_bin/pytorch_model.bin cannot be loaded", model="broken_bin", weights=True),
    "no_classifier_in_the_weights": case(
        "the weights of models/no_classifier lack classifier.bias and 1 more, which BertForSequenceClassification",
        "would have at random: fine-tune the model for the task first",
        model="no_classifier",
        weights=True,
    ),
    "no_third_layer_in_the_weights": case(
        "the weights of models/third_layer lack bert.encoder.layer.2.", model="third_layer", weights=True
    ),
    "other_width_in_the_weights": case(
        "the weights of models/wider do not fit its config",
        "must have shape [64], got [48]",
        model="wider",
        weights=True,
    ),
    "no_tokenizer": case("models/no_tokenizer holds no tokenizer: save it beside the model", model="no_tokenizer"),
    "no_tokenizer_of_llama": case(
        "the tokenizer of models/no_llama_tokenizer cannot be read",
        "save it beside the model",
        **language_model(model__name="models/no_llama_tokenizer"),
    ),
    "broken_tokenizer": case("the tokenizer of models/broken_tokenizer cannot be read", model="broken_tokenizer"),
    "tokenizer_of_another_model": case(
        "token ids must be below 12, the model's vocabulary, got 15; use the tokenizer that belongs to the model",
        model="few_words",
        weights=True,
    ),
    "tokenizer_without_padding": case(
        "the tokenizer must have a pad token", "set tokenizer.pad_token", model="no_padding"
    ),
    "other_padding": case(
        "pad_token_id of model config and tokenizer must be equal, got 1 and 0; set", model="other_padding"
    ),
}
TASKS = {
    "unknown_task": case(
        "unknown task 'sequence_clasification'. Did you mean 'sequence_classification'? Known: ",
        task__type="sequence_clasification",
    ),
    "language_modelling_with_a_classifier": case(
        "task 'causal_lm' needs", "got BertForSequenceClassification", "change task.type", task__type="causal_lm"
    ),
    "classification_with_a_language_model": case(
        "task 'sequence_classification' needs",
        "got LlamaForCausalLM",
        "fine-tune it for the task first",
        **language_model(task__type="sequence_classification"),
    ),
    "no_head_but_a_type": case(
        "got BertModel: its head would be untrained", model="base_model", task__type="sequence_classification"
    ),
    "head_of_no_task": case(
        "no task is known for the head of BertForPreTraining", "causal_lm for *ForCausalLM", model="two_heads"
    ),
    "loss_of_no_head": case(
        "search.reward loss needs a loss, this task has none; use one of kl",
        model="base_model",
        task__type="sentence_embedding",
        search__reward="loss",
    ),
    "head_unnamed": case("no task is known for the head of a model of unknown head", model="headless"),
    "regression": case(
        "num_labels must be at least 2, got 1: regression; set task.type: regression",
        model="regression",
        task__type="sequence_classification",
    ),
    "no_regression": case(
        "got problem_type None and num_labels 2; set task.type: sequence_classification", task__type="regression"
    ),
    "reward_of_a_regression": case(
        "search.reward accuracy needs classes, this task predicts numbers; use one of kl, loss, squared",
        model="regression",
        task__type="regression",
        search__reward="accuracy",
    ),
    "multi_label": case(
        "problem_type must be single_label_classification, got multi_label_classification",
        model="multi_label",
        task__type="sequence_classification",
    ),
    "one_label_of_several": case(
        "labels must be lists, of numbers or names of classes, got int64", model="multi_label"
    ),
    "sees_the_future": case(
        "this bert attends in both directions; set is_decoder to true",
        model="both_ways",
        task__columns={"text": "sentence"},
    ),
    "too_long": case("max_length must be at most 64, the model's positions, got 4096", task__max_length=4096),
    "windows_too_long": case(
        "max_length must be at most 64, the model's positions, got 65", **language_model(task__max_length=65)
    ),
    "one_token": case("task.max_length must be an integer > 1, or null, got 1", task__max_length=1),
    "unknown_metric": case(
        "metric 'acuracy' is not one of accuracy, ", "Did you mean 'accuracy'?", task__metrics=["acuracy"]
    ),
    "metric_of_another_task": case(
        "metric 'perplexity' needs losses, positions, this task gives predictions, references; leave",
        task__metrics=["perplexity"],
    ),
    "metric_of_classes": case(
        "metric 'accuracy' needs predictions, references", **language_model(task__metrics=["accuracy"])
    ),
    "unknown_role": case(
        "no column role 'txt'. Did you mean 'text'? Its roles: text, text_pair, label",
        task__columns={"txt": "sentence"},
    ),
    "role_of_another_task": case(
        "no column role 'label'. Its roles: text",
        **language_model(task__columns={"text": "sentence", "label": "label"}),
    ),
}
DATA = {
    "no_file": case(
        "dataset.data_files: no file 'data/test/nope.parquet' for split '",
        "'; paths are relative to ",
        **data("nope"),
    ),
    "no_files": case("dataset.path 'parquet' needs data_files, e.g. ", task__dataset={"path": "parquet"}),
    "no_folder": case("dataset.path: no folder './nope'; paths are relative to", task__dataset={"path": "./nope"}),
    "hub_name_without_network": case(
        "data set 'glue' cannot be fetched from the Hub",
        "Check the connection, or use local files",
        task__dataset={"path": "glue", "name": "sst2"},
    ),
    "no_parquet": case(
        "data of 'parquet' cannot be read: ", "not a parquet file.; look at data/test/words.parquet", **data("words")
    ),
    "no_json": case(
        "data of 'json' cannot be read: ",
        "JSON parse error: Invalid value. in row 0; look at data/test/words.json",
        task__dataset={"path": "json", "data_files": {split: f"data/{split}/words.json" for split in SPLITS}},
    ),
    "parquet_read_as_csv": case("data of 'csv' cannot be read: ", "look at data/", task__dataset__path="csv"),
    "files_that_do_not_match": case(
        "data of 'parquet'", "column names don't match", task__dataset__data_files__train="data/other_columns.parquet"
    ),
    "unknown_split": case(
        "splits.test: no split 'tset' in the data set. Did you mean 'test'? Its splits: ", **splits(test="tset")
    ),
    "empty_slice": case(
        "splits.test: 'test[48:]' must not be empty, but it holds no row ('test' has 48 rows); widen it",
        **splits(test="test[48:]"),
    ),
    "empty_file": case("splits.calibration: 'train' must not be empty", "0 rows", **data("none")),
    "same_split_twice": case(
        "splits must not overlap, but validation 'validation' and test 'validation' share rows",
        "slice them apart",
        **splits(test="validation"),
    ),
    "overlapping_rows": case(
        "calibration 'train[10:]' and validation 'train[:20]' share", **splits("train[10:]", "train[:20]")
    ),
    "overlapping_percents": case(
        "calibration 'train[:60%]' and validation 'train[50%:]' share 5 rows", **splits("train[:60%]", "train[50%:]")
    ),
    "open_bracket": case("splits.calibration: 'train[10' is no slice", "write e.g. train", **splits("train[10")),
    "letters_for_rows": case("splits.calibration: 'train[a:b]' is no slice", **splits("train[a:b]")),
    "above_100_percent": case("splits.calibration: 'train[:150%]' is no slice", "< 100", **splits("train[:150%]")),
    "no_column": case(
        "split 'calibration' has no column 'sentense' (role text). Did you mean 'sentence'? Its columns: ",
        task__columns={"text": "sentense"},
    ),
    "no_usual_columns": case(
        "none of the usual columns; set task.columns to {text: ..., ",
        "Its columns: sentences, labell",
        **data("other_columns"),
    ),
    "no_usual_text": case(
        "none of the usual columns; set task.columns to {text: ...}", **language_model(task__columns={})
    ),
    "labels_that_are_names": case(
        "column 'label': labels must be among the model's, label_0, label_1, got 'good' in row 0; set label2id",
        **data("names"),
    ),
    "labels_that_are_texts": case(
        "column 'sentence': labels must be among the model's", task__columns={"label": "sentence"}
    ),
    "label_without_a_class": case(
        "labels must be from 0 to 1, the classes of the model's head, got 7 in row 7; use a model with more classes",
        **data("seven"),
    ),
    "labels_hidden": case("got -1 in row 0; this split may have no labels, choose another", **data("unlabelled")),
    "labels_that_are_scores": case("labels must be whole numbers or class names, got double", **data("scores")),
    "label_missing": case(
        "split 'calibration', column 'label': no value in row 7; remove such rows", **data("no_label")
    ),
    "text_missing": case("column 'sentence': no value in row 7; remove such rows", **data("no_text")),
    "document_missing": case("column 'sentence': no value in row 7", **language_model(**data("no_text"))),
    "texts_that_are_numbers": case("column 'sentence': texts must be strings, got int64", **data("numbers")),
    "texts_that_are_labels": case("column 'label': texts must be strings, got int64", task__columns={"text": "label"}),
    "documents_all_empty": case(
        "split 'calibration', column 'sentence': all 8 texts are empty", **language_model(**data("blank"))
    ),
    "corpus_shorter_than_a_window": case(
        "a window takes 8 tokens of text, got 5; add text or lower max_length",
        weights=True,
        **language_model(
            task__dataset__data_files={split: f"data/{split}.parquet" for split in SPLITS}
            | {"train": "data/short.parquet"}
        ),
    ),
}
OUTPUT = {
    "taken": case(
        "taken exists and holds thesis.txt, which no run of hf_mabprune wrote: nothing was touched. Choose another",
        output__dir="taken",
        output__overwrite=True,
    ),
    "earlier_output": case("run exists. Choose another output.dir, or set output.overwrite: true", output__dir="run"),
    "the_model": case("models/bert is the model. Choose", output__dir="models/bert", output__overwrite=True),
    "around_the_data": case("data holds the data, ", output__dir="data", output__overwrite=True),
    "file": case("data/words.json is a file. Choose another output.dir", output__dir="data/words.json"),
    "below_a_file": case(
        "data/words.json/out cannot be made, for ", "words.json is no folder", output__dir="data/words.json/out"
    ),
    "interrupted_run": case(
        "waiting.state holds an interrupted run: go on with --resume, or start anew with output.overwrite: true",
        output__dir="waiting",
    ),
    "unknown_tracker": case(
        "output.log_with: no tracker 'tensorbord'. Did you mean 'tensorboard'? Known: ",
        output__log_with=["tensorbord"],
    ),
    "tracker_without_package": case(
        "output.log_with: tracker 'clearml' needs its package: pip install clearml", output__log_with=["clearml"]
    ),
    "hub_name_of_three_parts": case(
        "output.push_to_hub must be name or owner/name", "'a/b/c'", output__push_to_hub="a/b/c"
    ),
    "hub_name_with_spaces": case("output.push_to_hub must be", "got 'my model'", output__push_to_hub="my model"),
}
TABLES = {"settings": SETTINGS, "targets": TARGETS, "models": MODELS, "tasks": TASKS, "data": DATA, "output": OUTPUT}

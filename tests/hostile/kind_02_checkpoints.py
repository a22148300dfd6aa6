"""Kind 2: checkpoints that strangers made: plans, configs, code, pickles, templates, sizes."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, Expected, one
from tests.hostile.mutations import ODD_VALUES, Random, edit_json, edit_safetensors_header, edit_tree, harm_bytes
from tests.hostile.planted import attribute_names, canary_code, loads_canary, plant_modules

NEEDS = ("models/bert", "data", "run.yaml", "uniform.yaml", "run", "uniform")
HUGE = (2 * 10**7, 3 * 10**7, 10**6, 10**9, 10**12, 2**31, 2**63, 10**30)


def commands(rng: Random, checkpoint: str) -> tuple[tuple[str, ...], str]:
    """Gives a command that reads the checkpoint, and the name of the result that it gives unharmed."""
    stored = not checkpoint.startswith("models")
    evaluate = ("evaluate", checkpoint, "--json", *(() if stored else ("--config", "run.yaml")))
    others = [
        (("plan", "--config", "run.yaml", "--model.name", checkpoint), ""),
        (("prune", "--config", "run.yaml", "--model.name", checkpoint, "--output.dir", "out"), ""),
    ]
    if stored:
        others.append((("cut", checkpoint, "--target.parameters", "0.2", "--output.dir", "out"), ""))
    return rng.choice([(evaluate, f"evaluate {checkpoint}")] * 3 + others)


def config_of(folder: Path) -> dict[str, Any]:
    """Reads config.json."""
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def read(rng: Random, name: str, checkpoint: str, harm: Any, same: Expected = "equal", **options: Any) -> Case:
    """A command reads a harmed checkpoint; where it is evaluated, the figures are compared."""
    command, reference = commands(rng, checkpoint)
    expects = same if reference else "any"
    return one(f"{name} ({command[0]})", command, expects, harm=harm, needs=NEEDS, reference=reference, **options)


def plan_edited(rng: Random) -> Case:
    """The plan in config.json says something else."""
    seed = rng.randrange(2**31)

    def harm(folder: Path) -> None:
        config = config_of(folder / "run")
        draw = Random(seed)
        for _ in range(draw.randint(1, 2)):
            edit_tree(config["mabprune"], draw)
        (folder / "run" / "config.json").write_text(json.dumps(config, default=str))

    return read(rng, "plan edited", "run", harm)


def plan_sets(rng: Random) -> Case:
    """The plan sets attributes of modules."""
    seed = rng.randrange(2**31)

    def harm(folder: Path) -> None:
        draw = Random(seed)
        config = config_of(folder / "run")
        section = draw.choice(["attributes", "settings", "arguments", "copies", "parameters"])
        module = draw.choice(
            [
                "encoder.layer.0.attention.output.LayerNorm",
                "embeddings.LayerNorm",
                "encoder.layer.0",
                "",
                "encoder.layer.1.attention.self",
                "encoder.layer.0.attention.output.dense",
                "pooler.dense",
                "embeddings.word_embeddings",
                "encoder.layer.0.intermediate.intermediate_act_fn",
                "__class__",
                "encoder.layer.0.attention.self.__dict__",
            ]
        )
        value = draw.choice([1e6, 1, 2, 4, 8, 16, 32, 64, 0, "x", [0, 1], None, True, {"eps": 1e6}, [1, 0]])
        config["mabprune"].setdefault(section, {}).setdefault(module, {})
        try:
            config["mabprune"][section][module][draw.choice(attribute_names())] = value
        except TypeError:
            config["mabprune"][section][module] = value
        (folder / "run" / "config.json").write_text(json.dumps(config))

    return read(rng, "plan sets an attribute", "run", harm)


def sizes_huge(rng: Random) -> Case:
    """The config asks for more memory than anybody has."""
    checkpoint = rng.choice(["models/bert", "run", "uniform"])
    key = rng.choice(
        [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "max_position_embeddings",
            "num_attention_heads",
            "type_vocab_size",
            "num_labels",
            "max_position_embeddings",
            "vocab_size",
        ]
    )
    size = rng.choice(HUGE)

    def harm(folder: Path) -> None:
        config = config_of(folder / checkpoint)
        if key == "num_labels":
            config["id2label"] = {str(number): f"l{number}" for number in range(min(size, 10**6))}
            config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
        else:
            config[key] = size
        (folder / checkpoint / "config.json").write_text(json.dumps(config))

    command = ("plan", "--config", "run.yaml", "--model.name", checkpoint)
    if checkpoint != "models/bert" and rng.random() < 0.6:
        command = ("evaluate", checkpoint)
    return one(
        f"{key} {size} ({command[0]})",
        command,
        "refused",
        harm=harm,
        needs=NEEDS,
        forbidden=("tried to allocate", "MemoryError", "can't allocate"),
    )


def plan_huge(rng: Random) -> Case:
    """The plan asks for more memory than anybody has."""
    size, seed = rng.choice(HUGE), rng.randrange(2**31)

    def harm(folder: Path) -> None:
        config = config_of(folder / "run")
        parameters = config["mabprune"]["parameters"]
        path = Random(seed).choice(sorted(parameters))
        parameters[path] = [size] * len(parameters[path])
        (folder / "run" / "config.json").write_text(json.dumps(config))

    return one(f"a planned size of {size}", ("evaluate", "run"), "refused", harm=harm, needs=NEEDS)


def config_edited(rng: Random) -> Case:
    """Any field of a config is edited."""
    checkpoint, seed = rng.choice(["models/bert", "run", "uniform"]), rng.randrange(2**31)
    file = rng.choice(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json"])
    return read(
        rng, f"{file} edited", checkpoint, lambda folder: edit_json(folder / checkpoint / file, Random(seed)), "any"
    )


def field_added(rng: Random) -> Case:
    """A field is added that transformers gives a meaning."""
    checkpoint = rng.choice(["models/bert", "run", "uniform"])
    field, value = rng.choice(
        [
            ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
            ("quantization_config", {"quant_method": "gptq", "bits": 4}),
            ("_attn_implementation", "kernels-community/flash-attn"),
            ("attn_implementation", "evil/kernel"),
            ("_attn_implementation_internal", "evil/kernel"),
            ("_commit_hash", "../../x"),
            ("custom_pipelines", {"x": {"impl": "evil.Pipe", "pt": ["AutoModel"]}}),
            ("name_or_path", "/etc"),
            ("_name_or_path", "http://user:pass@evil.example/x"),
            ("is_decoder", True),
            ("add_cross_attention", True),
            ("tie_word_embeddings", True),
            ("torch_dtype", "float16"),
            ("dtype", "bfloat16"),
            ("dtype", "evil"),
            ("model_type", "llama"),
            ("model_type", "../x"),
            ("model_type", "mabprune_bert"),
            ("model_type", "mabprune_mabprune_bert"),
            ("architectures", ["BertModel"]),
            ("architectures", ["os.system"]),
            ("architectures", []),
            ("hidden_act", "__import__('os')"),
            ("hidden_act", "swish"),
            ("per_layer_config", {"0": {"layer_norm_eps": 1e6}}),
            ("per_layer_config", {"x": 7}),
            ("mabprune", {"format": 2, "parameters": {}}),
            ("mabprune", {"format": 3}),
            ("mabprune", [1]),
            ("mabprune", {"format": 1, "modules": {"encoder": [1, 1]}}),
            ("problem_type", "regression"),
            ("chunk_size_feed_forward", 7),
            ("output_hidden_states", True),
            ("use_return_dict", False),
            ("return_dict", False),
            ("pad_token_id", 10**6),
            ("gradient_checkpointing", True),
            ("pruned_heads", {"0": [0, 1]}),
            ("auto_map", 7),
            ("auto_map", {"AutoConfig": 7}),
            ("transformers_version", rng.choice(ODD_VALUES)),
        ]
    )

    def harm(folder: Path) -> None:
        config = config_of(folder / checkpoint) | {field: value}
        (folder / checkpoint / "config.json").write_text(json.dumps(config, default=str))

    return read(rng, f"{field} {value!r:.30}", checkpoint, harm, "any")


def brings_code(rng: Random) -> Case:
    """The checkpoint brings code, and its files ask for it."""
    checkpoint, seed = rng.choice(["models/bert", "run", "uniform"]), rng.randrange(2**31)

    def harm(folder: Path) -> None:
        draw, place = Random(seed), folder / checkpoint
        for name in (
            "modeling_evil",
            "configuration_evil",
            "tokenization_evil",
            "evil",
            "__init__",
            "conftest",
            "setup",
        ):
            (place / f"{name}.py").write_text(canary_code(folder, name))
        config = config_of(place)
        names = ["AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer"]
        config["auto_map"] = {
            name: draw.choice(["evil.Config", "modeling_evil.Model", "../evil.X", "me/evil--evil.X"])
            for name in draw.sample(names, draw.randint(1, 4))
        }
        if draw.random() < 0.4:
            config["model_type"] = draw.choice(["evil", "bert", "mabprune_bert", "mabprune_evil"])
        (place / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((place / "tokenizer_config.json").read_text())
        tokenizer |= draw.choice(
            [
                {"auto_map": {"AutoTokenizer": ["tokenization_evil.Slow", "tokenization_evil.Fast"]}},
                {"tokenizer_class": "evil.Tokenizer"},
                {"tokenizer_class": "EvilTokenizer"},
                {
                    "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"
                    "{{ cycler.__init__.__globals__.os.popen('touch "
                    + str(folder.parent / "canary" / "template")
                    + "').read() }}"
                },
            ]
        )
        (place / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        settings = place / "mabprune" / "config.yaml"
        if settings.exists() and draw.random() < 0.7:
            text = settings.read_text().replace("trust_remote_code: false", "trust_remote_code: true")
            settings.write_text(text.replace("  metrics: []", "  metrics: [./evil]"))

    return read(rng, "brings code", checkpoint, harm, "any")


def modeling_file_tampered(rng: Random) -> Case:
    """The file that travels was changed: it is not run; whether it is noticed is for push and verify."""
    how = rng.randrange(4)

    def harm(folder: Path) -> None:
        file = folder / "run" / "modeling_pruned.py"
        code = canary_code(folder, "modeling_pruned")
        text = file.read_text()
        file.write_text([text + code, code + text, code, text.replace("FORMAT = 2", "FORMAT = 2\n" + code)][how])

    return read(rng, "modeling_pruned.py tampered", "run", harm, "warned")


def pickled(rng: Random) -> Case:
    """Weights or other files are pickles that run code when they are loaded."""
    checkpoint, seed = rng.choice(["models/bert", "run", "uniform"]), rng.randrange(2**31)

    def harm(folder: Path) -> None:
        draw, place = Random(seed), folder / checkpoint
        evil = pickle.dumps(loads_canary(folder, "pickle"))
        names = [
            "pytorch_model.bin",
            "training_args.bin",
            "optimizer.pt",
            "model.pkl",
            "pytorch_model-00001-of-00001.bin",
            "consolidated.00.pth",
            "tf_model.h5",
            "flax_model.msgpack",
            "adapter_model.bin",
            "spiece.model",
        ]
        for name in names:
            (place / name).write_bytes(evil)
        what = draw.randrange(4)
        weights = place / "model.safetensors"
        if what == 0:
            weights.unlink()
        elif what == 1:
            weights.write_bytes(evil)
        elif what == 2:
            weights.unlink()
            index = {
                "metadata": {},
                "weight_map": {"classifier.bias": draw.choice(["pytorch_model.bin", "../../run.yaml"])},
            }
            name = draw.choice(["model.safetensors.index.json", "pytorch_model.bin.index.json"])
            (place / name).write_text(json.dumps(index))

    return read(rng, "pickles", checkpoint, harm, "equal")


def weights_harmed(rng: Random) -> Case:
    """The weights' file is damaged; what a flipped bit in a number changes, only a checksum can tell."""
    checkpoint, seed = rng.choice(["models/bert", "run", "uniform"]), rng.randrange(2**31)
    header = rng.random() < 0.4

    def harm(folder: Path) -> None:
        path = folder / checkpoint / "model.safetensors"
        edit_safetensors_header(path, Random(seed)) if header else harm_bytes(path, Random(seed))

    return read(rng, "weights harmed", checkpoint, harm, "any")


def code_in_the_way(rng: Random) -> Case:
    """The working directory is full of modules named like those that are imported."""
    plant = rng.randrange(2**31)
    command, reference = rng.choice(
        [
            (("evaluate", "run", "--json"), "evaluate run"),
            (("prune", "--config", "run.yaml"), "run"),
            (("cut", "run", "--target.parameters", "0.2", "--output.dir", "out"), "cut"),
        ]
    )
    return one(
        f"modules in the working directory ({command[0]})",
        command,
        "passes",
        needs=NEEDS,
        reference=reference,
        harm=lambda folder: plant_modules(folder, Random(plant)),
    )


def files_special(rng: Random) -> Case:
    """A file of the checkpoint is a link, a pipe, a folder."""
    checkpoint, seed = rng.choice(["models/bert", "run"]), rng.randrange(2**31)
    file = rng.choice(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])

    def harm(folder: Path) -> None:
        path = folder / checkpoint / file
        path.unlink()
        what = Random(seed).randrange(5)
        if what == 0:
            os.mkfifo(path)
        elif what == 1:
            path.symlink_to("/dev/zero")
        elif what == 2:
            path.symlink_to(path.name)
        elif what == 3:
            path.mkdir()
        else:
            path.symlink_to("/dev/null")

    return read(rng, f"{file} is special", checkpoint, harm, "equal")


THEMES = (
    plan_edited,
    plan_sets,
    sizes_huge,
    plan_huge,
    config_edited,
    field_added,
    brings_code,
    modeling_file_tampered,
    pickled,
    weights_harmed,
    code_in_the_way,
    plan_sets,
    plan_edited,
    files_special,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

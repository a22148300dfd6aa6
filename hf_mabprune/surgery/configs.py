"""Writes the config of a cut model: a stock one where all layers are alike, else one that says each layer's sizes."""

from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Architecture, Site, linear_at
from hf_mabprune.checkpoints import modeling_pruned


def uniform_config(architecture: Architecture, config: PretrainedConfig, units: dict[Site, int]) -> PretrainedConfig:
    """Gives the stock config of a model with the same sizes in every layer.

    Args:
        architecture: Family of the dense model.
        config: Config of the dense model; it is not changed.
        units: Site -> units that it keeps.

    Raises:
        ValueError: If layers differ, or the family's config cannot say the sizes.
    """
    widths, heads = ({count for site, count in units.items() if site.kind == kind} for kind in ("neuron", "head"))
    for name, counts in (("neurons", widths), ("heads", heads)):
        if len(counts) != 1:
            raise ValueError(f"layout uniform needs the same number of {name} in every layer, got {sorted(counts)}")
    if isinstance(config, modeling_pruned.PerLayerConfig):
        raise ValueError("the model has per-layer sizes already: use layout per_layer")
    return architecture.uniform_config(config, widths.pop(), heads.pop())


def per_layer_config(architecture: Architecture, dense: PreTrainedModel, units: dict[Site, int]) -> PretrainedConfig:
    """Puts the stock config's contents under a per-layer type, with the sizes of each layer said twice.

    `mabprune` is the plan that `modeling_pruned.py` builds the model by; `per_layer_config` is the schema of
    transformers, in the family's own field names.

    Args:
        architecture: Family of the dense model.
        dense: Model before the cut; a per-layer one hands on the biases of its plan.
        units: Site -> units that it keeps.
    """
    stock = type(dense.config)
    settings = dense.config.to_dict()
    for own in ("model_type", "transformers_version", "auto_map"):
        settings.pop(own, None)
    earlier = settings.get("mabprune") or {}
    settings["mabprune"] = _plan(dense, units)
    if "biases" in earlier:
        settings["mabprune"]["biases"] = earlier["biases"]
    fields: dict[int, dict[str, int]] = {}
    for site, count in units.items():
        fields.setdefault(site.layer, {}).update(architecture.layer_fields(site, count))
    settings["per_layer_config"] = fields
    new = modeling_pruned.config_class(stock)(**settings)
    new.auto_map = modeling_pruned.auto_map(modeling_pruned.stock_config_class(stock))
    new._attn_implementation = dense.config._attn_implementation
    new.name_or_path = dense.config.name_or_path
    return new


def _plan(dense: PreTrainedModel, units: dict[Site, int]) -> dict[str, object]:
    """Says what `modeling_pruned.resize` has to change: path -> [out_features, in_features], path -> attributes."""
    modules: dict[str, list[int]] = {}
    attributes: dict[str, dict[str, int]] = {}
    for site, count in units.items():
        sizes = site.sizes(count)
        for path in site.linears():
            linear = linear_at(dense, path)
            blocks = sizes["groups"] if path in site.per_group else count
            rows = blocks * site.unit_size
            modules[path] = [linear.out_features, rows] if path == site.output else [rows, linear.in_features]
        for path, names in site.attributes.items():
            attributes[path] = {name: sizes[size] for name, size in names.items()}
    return {"format": modeling_pruned.FORMAT, "modules": modules, "attributes": attributes}

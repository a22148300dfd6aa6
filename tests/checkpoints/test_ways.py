"""What has to be done before a checkpoint loads, in words."""

from hf_mabprune.checkpoints.ways import needed
from hf_mabprune.surgery.cut import cut
from tests.tiny_models import keep_of, tiny_model


def test_a_type_that_transformers_does_not_know_needs_its_module() -> None:
    assert needed("uniform", "bert") == ""
    assert needed("per_layer", "bert") == "after import hf_mabprune, or with trust_remote_code=True"
    assert needed("uniform", "my_type") == "after import of the module that registers my_type"
    assert needed("per_layer", "my_type") == "after import hf_mabprune and the module that registers my_type"


def test_a_model_that_was_pruned_before_is_still_of_a_known_type() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    once = cut(model, keep_of(model, {0: range(5)}), "per_layer")
    assert needed("per_layer", once.config.model_type) == needed("per_layer", "bert")

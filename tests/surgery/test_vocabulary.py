"""A model without some tokens says what the dense one says of the others, and is a stock checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.vocabulary import named_ids, rows_of, without_tokens
from tests.tiny_models import head_of, inputs_for, keep_for, tiny_model

BLIND = ("clip_vision_model", "deit", "dinov2", "siglip_vision_model", "vit")  # which read no tokens
HEARD_OR_SEEN = ("clip", "siglip", "wav2vec2", "whisper")  # whose best known heads are given no texts
TYPES = [name for name in ARCHITECTURES.names() if name not in (*BLIND, *HEARD_OR_SEEN)]


def renumbered(model: PreTrainedModel) -> tuple[np.ndarray, dict[int, int]]:
    """Every other token, and those that the configs name; and the new id of each."""
    keep = np.array(sorted({*range(0, rows_of(model), 2), *named_ids(model)}))
    return keep, {int(number): place for place, number in enumerate(keep)}


def said(model: PreTrainedModel, keep: np.ndarray, own: bool) -> torch.Tensor:
    """First output on tokens that stay; `own` gives the model's own ids of these."""
    inputs, rows = inputs_for(model), torch.from_numpy(keep)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            places = torch.searchsorted(rows, inputs[name]).clamp(max=len(keep) - 1)
            inputs[name] = places if own else rows[places]
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_says_the_same_of_tokens_that_stay(model_type: str) -> None:
    dense = tiny_model(model_type, head_of(model_type))
    rows, before = rows_of(dense), {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    keep, ids = renumbered(dense)
    small = without_tokens(dense, keep, ids)
    expected = said(dense, keep, own=False)
    if expected.shape[-1] == rows:
        expected = expected[..., torch.from_numpy(keep)]
    torch.testing.assert_close(said(small, keep, own=True), expected)
    assert rows_of(small) == len(keep) == small.get_input_embeddings().num_embeddings
    assert small.get_input_embeddings().weight.shape[0] == len(keep)
    assert rows_of(dense) == rows
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_ids_in_configs_follow(tmp_path: Path) -> None:
    dense = tiny_model("bart", "AutoModelForSeq2SeqLM", forced_eos_token_id=2, decoder_start_token_id=5)
    dense.generation_config.bad_words_ids = [[7], [9, 11]]
    dense.generation_config.eos_token_id = [2, 13]
    keep, ids = renumbered(dense)
    assert {2, 5, 7, 9, 11, 13} <= ids.keys()
    without_tokens(dense, keep, ids).save_pretrained(tmp_path)
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert (small.config.decoder_start_token_id, small.config.forced_eos_token_id) == (ids[5], ids[2])
    assert small.generation_config.bad_words_ids == [[ids[7]], [ids[9], ids[11]]]
    assert small.generation_config.eos_token_id == [ids[2], ids[13]]
    assert dense.config.decoder_start_token_id == 5
    torch.testing.assert_close(said(small, keep, own=True), said(without_tokens(dense, keep, ids), keep, own=True))


def test_padding_follows_to_where_positions_are_counted_from_it() -> None:
    dense = tiny_model("roberta", "AutoModelForMaskedLM", pad_token_id=6)
    keep = np.arange(2, rows_of(dense))
    small = without_tokens(dense, keep, {int(number): place for place, number in enumerate(keep)})
    assert small.config.pad_token_id == small.roberta.embeddings.padding_idx == 4


def test_tied_weights_stay_tied_and_a_model_is_cut_again(tmp_path: Path) -> None:
    dense = tiny_model("gemma3_text", "AutoModelForCausalLM", tie_word_embeddings=True)
    keep, ids = renumbered(dense)
    once = without_tokens(dense, keep, ids)
    keep, ids = renumbered(once)
    twice = without_tokens(once, keep, ids)
    assert twice.lm_head.weight is twice.get_input_embeddings().weight
    twice.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert len(again.lm_head.weight) == len(keep)
    torch.testing.assert_close(said(again, keep, own=True), said(twice, keep, own=True))


def test_a_model_of_per_layer_sizes_is_cut_too() -> None:
    dense = tiny_model("bert", "AutoModelForMaskedLM")
    pruned = cut(dense, keep_for(dense, "per_layer"), "per_layer")
    keep, ids = renumbered(pruned)
    small = without_tokens(pruned, keep, ids)
    expected = said(pruned, keep, own=False)[..., torch.from_numpy(keep)]
    torch.testing.assert_close(said(small, keep, own=True), expected)


@pytest.mark.parametrize("model_type", BLIND)
def test_a_model_that_reads_no_tokens_is_refused(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"cuts tokens, and a {model_type} reads none: leave it out"):
        rows_of(tiny_model(model_type, head_of(model_type)))

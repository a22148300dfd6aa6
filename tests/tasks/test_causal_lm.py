from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertLMHeadModel

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of, encode_sample
from tests.tasks.tiny_tasks import llama, make_tokenizer, task_of

A, B, C, D, E, F, G, END = 6, 7, 8, 9, 10, 11, 12, 5


def language_task(kind: str = "plain", **settings: Any) -> Task:
    return task_of(llama(), make_tokenizer(kind), **({"max_length": 4} | settings))


def texts(*rows: str) -> Dataset:
    return Dataset.from_dict({"text": list(rows)})


def test_documents_are_joined_and_the_tail_is_dropped() -> None:
    encoded = language_task().encode(texts("a b c", "d e f g a", "b"))
    assert encoded["input_ids"][:] == [[A, B, C, END], [D, E, F, G], [A, END, B, END]]
    assert language_task().encode(texts("a b c", "d e f g"))["input_ids"][:] == [[A, B, C, END], [D, E, F, G]]


def test_lines_of_running_text_are_joined_as_they_are() -> None:
    encoded = language_task().encode(texts("", " a b c \n", "", " d e \n", "f g\n", "a b"))
    assert encoded["input_ids"][:] == [[A, B, C, D], [E, F, G, A]]


def test_without_an_end_token_nothing_closes_a_document() -> None:
    task = task_of(llama(), make_tokenizer("plain", eos_token=None), max_length=4)
    assert task.encode(texts("a b c", "d e f g"))["input_ids"][:] == [[A, B, C, D]]


def test_every_window_begins_as_the_tokenizer_does() -> None:
    encoded = language_task("begin").encode(texts("a b c", "d e f g"))
    assert encoded["input_ids"][:] == [[4, A, B, C], [4, END, D, E], [4, F, G, END]]


def test_windows_go_on_across_the_batches_of_the_tokenizer() -> None:
    """3,001 lines of one token each: all of them come, in order."""
    letters = "abcdefg"
    encoded = language_task().encode(texts(*(letters[row % 7] + "\n" for row in range(3001))))
    flat = [token for window in encoded["input_ids"] for token in window]
    assert flat == [A + row % 7 for row in range(3000)]


def test_a_text_may_begin_with_many_empty_lines() -> None:
    encoded = language_task().encode(texts(*[""] * 1500, "a b c d\n"))
    assert encoded["input_ids"][:] == [[A, B, C, D]]


def test_a_selection_of_rows_is_respected() -> None:
    rows = texts("a b c", "d e f", "g a b").select([2, 0])
    assert language_task().encode(rows)["input_ids"][:] == [[G, A, B, END], [A, B, C, END]]


def test_targets_are_the_tokens_that_follow() -> None:
    task, model = language_task(), llama()
    (batch,) = batches_of(task, task.encode(texts("a b c", "d e f g")), 2)
    with torch.no_grad():
        readout = task.readout(model, batch)
        logits = model(batch["input_ids"]).logits
    assert readout.targets.tolist() == [[B, C, END], [E, F, G]]
    torch.testing.assert_close(readout.outputs, logits[:, :3])
    assert readout.positions().tolist() == [3, 3]


def test_no_key_value_cache_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = language_task(), llama()
    (batch,) = batches_of(task, task.encode(texts("a b c")), 2)
    caches = []
    model.register_forward_hook(lambda module, args, output: caches.append(output.past_key_values))
    task.readout(model, batch)
    assert caches == [None]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    task, model = language_task(), llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    (batch,) = batches_of(task, task.encode(texts("a b c", "d e f g", "c d e")), 8)
    with torch.no_grad():
        scores = task.readout(model, batch).scores()
    assert task.compute_metrics(scores)["perplexity"] == pytest.approx(16, abs=1e-9)


def test_windows_are_drawn_from_all_of_the_text() -> None:
    rows = texts(*(f"{a} {b} {c}" for a in "abcdefg" for b in "abcdefg" for c in "abc"))
    windows = encode_sample(language_task(), rows, 20, seed=0)["input_ids"][:]
    assert len(windows) == 20
    assert {window[0] for window in windows} >= {A, D, G}
    every = encode_sample(language_task(), rows, None, seed=0)["input_ids"][:]
    assert len(every) == 147
    assert [window in every for window in windows] == [True] * 20


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a window takes 4 tokens of text, got 3; add text or lower max_length"):
        language_task().encode(texts("a b"))
    with pytest.raises(ValueError, match="a window takes 4 tokens of text, got 0"):
        language_task().encode(texts("", ""))


def test_the_default_window_is_128_tokens_or_what_the_model_takes() -> None:
    assert language_task(max_length=None).length == 32
    assert task_of(llama(max_position_embeddings=512), make_tokenizer("plain")).length == 128


def test_metrics_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="metric 'accuracy' needs predictions, references, this task gives losses"):
        language_task(metrics=["accuracy"])


def test_an_encoder_is_no_language_model() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = BertLMHeadModel(BertConfig(vocab_size=16, is_decoder=True, **sizes))
    assert task_of(decoder, make_tokenizer("plain")).main_metric == "perplexity"
    decoder.config.is_decoder = False
    with pytest.raises(ValueError, match="must not see the tokens that it predicts, but this bert attends in both"):
        task_of(decoder, make_tokenizer("plain"))


def test_a_row_is_a_text_or_a_chat() -> None:
    both = Dataset.from_dict({"text": ["a b c d"], "messages": [[{"role": "assistant", "content": "a"}]]})
    assert language_task().find_columns(both, "train") == {"text": "text"}
    assert language_task(columns={"messages": "messages"}).find_columns(both, "train") == {"messages": "messages"}
    with pytest.raises(ValueError, match=r"a row is a text, or messages, or .* got columns for text, prompt"):
        language_task(columns={"text": "text", "prompt": "prompt"})

from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.chat import rendered
from hf_mabprune.tasks.sampling import batches_of, encode_sample
from tests.tasks.tiny_tasks import WORDS, cross_entropy_by_hand, llama, make_tokenizer, task_of

# A message of a chat is [CLS], j from the assistant and i from others, the content, [SEP].
MESSAGE = "{{ '[CLS] ' + ('j' if m.role == 'assistant' else 'i') + ' ' }}"
END = "{% if add_generation_prompt %}{{ '[CLS] j' }}{% endif %}"
PLAIN = "{% for m in messages %}" + MESSAGE + "{{ m.content + ' [SEP] ' }}{% endfor %}" + END
MARKED = (
    "{% for m in messages %}" + MESSAGE + "{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' [SEP] ' }}"
    "{% endgeneration %}{% else %}{{ m.content + ' [SEP] ' }}{% endif %}{% endfor %}" + END
)
THOUGHTFUL = (  # thoughts, f, are left out once another message follows
    "{% for m in messages %}" + MESSAGE + "{{ ('f ' if loop.last and m.role == 'assistant' else '') + m.content }}"
    "{{ ' [SEP] ' }}{% endfor %}" + END
)
TURNS = [("user", "a b"), ("assistant", "c d"), ("user", "e"), ("assistant", "g h")]


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def chat_task(template: str | None = PLAIN, **settings: Any) -> Task:
    return task_of(llama(), make_tokenizer("plain", chat_template=template), **settings)


def shown(ids: list[int], counted: list[bool]) -> str:
    """The words of a chat, those that count in capitals."""
    words = [(WORDS[token], on) for token, on in zip(ids, counted, strict=True)]
    return " ".join(word.upper() if on and len(word) == 1 else word for word, on in words)


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_all_answers_count_and_the_words_that_announce_them_do_not(template: str) -> None:
    tokenizer = make_tokenizer("plain", chat_template=template)
    ids, counted = rendered(tokenizer, [], chat(*TURNS))
    text = "[CLS] i a b [SEP] [CLS] j C D [SEP] [CLS] i e [SEP] [CLS] j G H [SEP]"
    assert shown(ids, counted) == text
    assert [WORDS[i] for i, on in zip(ids, counted, strict=True) if on] == ["c", "d", "[SEP]", "g", "h", "[SEP]"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_answers_of_a_prompt_do_not_count(template: str) -> None:
    ids, counted = rendered(make_tokenizer("plain", chat_template=template), chat(*TURNS[:3]), chat(TURNS[3]))
    assert shown(ids, counted) == "[CLS] i a b [SEP] [CLS] j c d [SEP] [CLS] i e [SEP] [CLS] j G H [SEP]"


def test_an_answer_counts_where_it_is_rendered_as_it_would_be_given() -> None:
    ids, counted = rendered(make_tokenizer("plain", chat_template=THOUGHTFUL), [], chat(*TURNS))
    assert shown(ids, counted) == "[CLS] i a b [SEP] [CLS] j c d [SEP] [CLS] i e [SEP] [CLS] j F G H [SEP]"


def test_a_template_that_hides_where_the_answer_begins_is_refused() -> None:
    backwards = "{% for m in messages|reverse %}{{ m.content + ' ' }}{% endfor %}"
    rows = Dataset.from_dict({"messages": [chat(*TURNS)]})
    with pytest.raises(ValueError, match=r"cannot render row 0: its rendering does not begin .* mark answers in the"):
        chat_task(backwards).encode(rows)


def test_what_a_template_refuses_names_the_row() -> None:
    strict = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + PLAIN
    rows = Dataset.from_dict({"messages": [chat(*TURNS), chat(("system", "a"), *TURNS)]})
    with pytest.raises(ValueError, match="the chat template cannot render row 1: TemplateError: no system"):
        chat_task(strict).encode(rows)


def test_prompts_and_completions_may_be_texts_or_messages() -> None:
    task = chat_task()
    texts = Dataset.from_dict({"prompt": ["a b", "e"], "completion": ["c d", "g"]})
    messages = Dataset.from_dict(
        {
            "prompt": [chat(("user", "a b")), chat(("user", "e"))],
            "completion": [chat(("assistant", "c d")), chat(("assistant", "g"))],
        }
    )
    for rows in (texts, messages):
        task.check(rows, "calibration")
    assert task.encode(texts)[:] == task.encode(messages)[:]
    assert task.encode(texts)["labels"][1] == [-100] * 6 + [WORDS.index("g"), WORDS.index("[SEP]")]


def test_loss_and_divergence_read_the_answers_alone() -> None:
    task, model = chat_task(), llama()
    rows = Dataset.from_dict({"messages": [chat(*TURNS[:2]), chat(*TURNS)]})
    (batch,) = batches_of(task, task.encode(rows), 2)
    with torch.no_grad():
        readout = task.readout(model, batch)
    assert readout.positions().tolist() == [3, 6]
    assert readout.losses().tolist() == pytest.approx(cross_entropy_by_hand(readout.outputs, readout.targets))
    assert task.inputs(batch)["attention_mask"].sum(1).tolist() == [10, 19]


def test_chats_are_drawn_by_row_and_cut_at_the_end() -> None:
    task = chat_task(max_length=12)
    rows = Dataset.from_dict({"messages": [chat(("user", "a"), ("assistant", "b " * n)) for n in range(1, 31)]})
    drawn = encode_sample(task, rows, 5, seed=0)
    assert len(drawn) == 5 and max(map(len, drawn["input_ids"])) <= 12
    assert task_of(llama(), make_tokenizer("plain", chat_template=PLAIN)).encode(rows)["input_ids"][29][:3] == [
        2,
        14,
        6,
    ]
    with pytest.raises(ValueError, match="a token of an answer within 5 tokens, got none in row 0; raise max_length"):
        chat_task(max_length=5).encode(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"messages": [chat(*TURNS), chat(TURNS[0])]}, "must have a message of the role assistant, got none in row 1"),
        ({"messages": [chat(*TURNS), []]}, "must have a message of the role assistant, got none in row 1"),
        ({"messages": ["a", "b"]}, "chats must be lists of messages with a role and a content, got string"),
        ({"messages": [chat(*TURNS), None]}, "column 'messages': no value in row 1"),
        ({"prompt": [chat(TURNS[0]), []], "completion": ["a", "b"]}, "'prompt': a chat must have a message, got none"),
        ({"prompt": ["a"], "completion": [1]}, "column 'completion': chats must be lists of messages .* got int64"),
    ],
)
def test_what_is_no_chat_is_refused(rows: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat_task().check(Dataset.from_dict(rows), "calibration")


def test_a_tokenizer_without_a_template_is_refused() -> None:
    rows = Dataset.from_dict({"messages": [chat(*TURNS)]})
    with pytest.raises(ValueError, match=r"has chats \(messages\), but the tokenizer has no chat template; set"):
        chat_task(None).check(rows, "calibration")

"""The fixture that turns a registered task's name into a task, a model and data."""

import pytest
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.tasks.base import Task
from tests.tasks.tiny_tasks import CASES


@pytest.fixture
def case(request: pytest.FixtureRequest) -> tuple[Task, PreTrainedModel, Dataset]:
    """Task, model and data of the registered name that the test is parametrised with."""
    assert request.param in CASES, f"add a case for the task '{request.param}' to tests/tasks/tiny_tasks.py"
    return CASES[request.param].build()

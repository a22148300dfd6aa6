"""A plugin: multi-layer perceptrons over rows of a table, whose hidden neurons are arms.

mabprune prune --plugin research/studies/paper/mlp.py --config configs/tabular_german_credit.yaml

Symbols: B rows; F features; H hidden layers of W neurons; C outputs.
"""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import SiteSpec, Stack, rows

MODEL_TYPE = "tabular_mlp"
MOST_LAYERS = 8  # hidden ones


class TabularMLPConfig(PreTrainedConfig):
    """Describes an MLP.

    Attributes:
        num_features: F.
        hidden_size: W.
        hidden_layers: H.
    """

    model_type = MODEL_TYPE
    num_features: int = 8
    hidden_size: int = 64
    hidden_layers: int = 2

    def __post_init__(self, **kwargs: object) -> None:
        if not 1 <= self.hidden_layers <= MOST_LAYERS:
            raise ValueError(f"hidden_layers must be from 1 to {MOST_LAYERS}, got {self.hidden_layers}")
        super().__post_init__(**kwargs)


class TabularMLP(PreTrainedModel):
    """Runs hidden layers one after the other, each W x + b and then max(0, .), and one of outputs."""

    config_class = TabularMLPConfig
    main_input_name = "features"

    def __init__(self, config: TabularMLPConfig) -> None:
        super().__init__(config)
        modules: list[nn.Module] = []
        width = config.num_features
        for _ in range(config.hidden_layers):
            modules += [nn.Linear(width, config.hidden_size), nn.ReLU()]
            width = config.hidden_size
        self.network = nn.Sequential(*modules, nn.Linear(width, int(config.num_labels or 0)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draws weights and biases as torch does, within 1 / sqrt of the number of inputs."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """Gives logits, [B, C].

        Args:
            features: Rows, [B, F].
            labels: What is right, [B], for a loss.
        """
        logits = self.network(features.to(self.dtype))
        loss = None if labels is None else self.loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Measures how wrong outputs are, mean over the rows."""
        raise NotImplementedError


class TabularMLPForClassification(TabularMLP):
    """Predicts classes."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Measures the cross-entropy."""
        return nn.functional.cross_entropy(logits, labels)


class TabularMLPForRegression(TabularMLP):
    """Predicts numbers."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Measures the squared error."""
        return nn.functional.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))


AutoConfig.register(MODEL_TYPE, TabularMLPConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    TabularMLPConfig, (TabularMLPForClassification, TabularMLPForRegression), exist_ok=True
)


def _hidden_layer(number: int) -> SiteSpec:
    """Declares the neurons of one hidden layer: columns of the linear layer behind it, rows of its own."""
    own, behind = 2 * number, 2 * number + 2
    return SiteSpec("neuron", str(behind), rows(str(own)), units="hidden_size", feeds=tuple(map(str, range(behind))))


@ARCHITECTURES.register(MODEL_TYPE)
class TabularMLPs(Architecture):
    """Declares the whole network as one layer, since one matrix lies between two hidden layers and belongs to both."""

    stacks = (Stack("network", tuple(map(_hidden_layer, range(MOST_LAYERS))), flag="", count=""),)

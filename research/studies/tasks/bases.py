"""Models that the tasks are trained from: parts of trained ones, and a BART of random weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    set_seed,
)

LAYERS = 2  # of the encoder that stay
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Answer:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


def encoder(source: str, out: Path, layers: int = LAYERS) -> None:
    """Saves the first layers of a BERT-like encoder, without what sentence-transformers adds.

    Args:
        source: Folder or Hub name of the encoder.
        out: Folder of what is left.
        layers: Number of layers that stay.
    """
    model = AutoModel.from_pretrained(source, dtype=torch.float32, add_pooling_layer=True)
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def chatting(source: str, out: Path) -> None:
    """Saves a language model with a chat template that marks what the assistant says."""
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(out)


def bart(texts: Sequence[str], out: Path, seed: int = 0) -> None:
    """Saves a BART of random weights, two layers a side, whose tokens are the words of some texts."""
    set_seed(seed)
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = BartConfig(
        vocab_size=len(vocabulary),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=64,
        dropout=0.0,
        forced_eos_token_id=None,
    )
    BartForConditionalGeneration(config).save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(out)

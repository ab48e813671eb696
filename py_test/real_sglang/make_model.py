"""Writes a tiny Llama with random weights, a tokenizer trained on Python's own sources, and a chat template."""

import os
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZE = 2048
PAD, START, END = "<pad>", "<start>", "<end>"
TEMPLATE = (
    "{% for m in messages %}<start>{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train([str(path) for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]], trainer)
    outer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=START, eos_token=END, pad_token=PAD)
    outer.chat_template = TEMPLATE
    return outer


def main(home: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    os.makedirs(home, exist_ok=True)
    tokenizer().save_pretrained(home)
    LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, **sizes, **heads, **ids)).save_pretrained(home)


if __name__ == "__main__":
    main(sys.argv[1])

"""Which model do the real engines serve? A tiny Llama of seeded random weights with a tokenizer of its own, made here.

Run by the engines' Python: `python tests/engines/tiny_model.py FOLDER`. No download, the same weights each time.

Its answers are nonsense, but they behave as the tests need: they depend on the whole context, so that lost or foreign
KV shows; characters of several tokens occur; the end-of-sequence token is as rare as any other; the likeliest token
leads so far that bfloat16 and another batch size do not change which one it is.
"""

import sys
from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED: Final = 7
VOCABULARY_TOKENS: Final = 768
CONTEXT_TOKENS: Final = 4096
END: Final = "<|im_end|>"
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", END)
MARKS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""What vLLM's reasoning and tool parsers look for: one token each, but part of the text."""

CHAT_TEMPLATE: Final = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% endif %}
{%- if message.content and message.content is not string %}
{%- for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

CORPUS: Final = (
    "The scheduler gives each call to the instance that is just enough for it, and moves it when it lags behind.",
    "An agent is a graph: plan, call tools, loop, fan out, answer. What its user feels is the time of the whole run.",
    "def plan(state): return {'plan': answer(state['question'])}  # 42 lines, 7 errors, 0 warnings\n",
    '{"name": "search", "arguments": {"query": "weather in Lisbon", "limit": 10, "exact": true}}',
    "Größe, Übermut und ähnliche Wörter; où est la forêt déjà rêvée? El niño comió piñas. Żółć, čeština, ğüzel.",
    "Быстрая лиса прыгает через ленивую собаку. Всё хорошо, что хорошо кончается.",
    "Η γρήγορη αλεπού πηδά πάνω από τον τεμπέλη σκύλο. שלום עולם. مرحبا بالعالم.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园散步吧。调度器选择合适的实例。",
    "すばやい茶色の狐はのろまな犬を飛び越える。東京は晴れです。빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "🙂🚀🎉🔥🧠👩‍💻👍🏽🇵🇹🦊🐕✅❌⚠️💡🌍 ∑ ∫ √ ≠ ≤ ∞ → ⇒ €",
)

_LEAD: Final = 12.0
"""How strongly a piece of a character follows the one before it; the other logits have a spread of 8."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text goes in and comes out; rare characters take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS - len(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    # Latin text twice as often as the rest, so that the others' characters are not all merged into one token.
    tokenizer.train_from_iterator(CORPUS + CORPUS[:4] * 2, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=SPECIAL[0],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, scaled so that every part counts: with the default scale answers degenerate into one token."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    random = torch.Generator().manual_seed(SEED)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=random) * _std(name, weight.shape[1]))
        _let_characters_be_completed(model, tokenizer)
    return model


def _std(name: str, inputs: int) -> float:
    if "embed_tokens" in name or "lm_head" in name:
        return 1.0
    if "q_proj" in name or "k_proj" in name:
        return 2.0 * inputs**-0.5  # an attention that picks, instead of an average that hardly moves with its context
    if "o_proj" in name or "down_proj" in name:
        return 2.0 * inputs**-0.5  # what the layers add outweighs the last token's own embedding
    return inputs**-0.5


def _let_characters_be_completed(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """After a token that begins a character, the one that ends it leads; elsewhere pieces of characters are rare."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    spelled = [tokenizer.encode(character, add_special_tokens=False) for character in sorted(set("".join(CORPUS)))]
    second = {ids[0]: ids[1] for ids in spelled if len(ids) == 2}
    first_of = {piece: first for first, piece in second.items() if piece not in second}
    for token in range(VOCABULARY_TOKENS):
        if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token]) and token not in first_of.values():
            head[token] *= 0.3
    for piece, first in first_of.items():
        head[piece] += _LEAD * embedding[first] / embedding[first].norm()


def main() -> None:
    """Write the model and its tokenizer into the folder that the command line names."""
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer()
    if len(tokenizer) != VOCABULARY_TOKENS:
        sys.exit(f"the corpus gives {len(tokenizer)} tokens, not {VOCABULARY_TOKENS}: it is too short")
    model = make_model(tokenizer).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()

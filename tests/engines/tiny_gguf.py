"""How does llama.cpp get the tiny model? Its weights, tokenizer and chat template, written into one GGUF file.

Run by the engines' Python: `python tests/engines/tiny_gguf.py FOLDER FILE`, with a folder that `tiny_model.py` made.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The shape of the model."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], end_id: int, chat_template: str) -> None:
    """The byte-level BPE; special tokens are no part of the text, the other added ones are."""
    vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    own, marks = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(
        [gguf.TokenType.NORMAL if name not in added else own if added[name] else marks for name in names]
    )
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)


def write_weights(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """All weights, as float32."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.to(torch.float32).numpy()
        if name in WHOLE:
            writer.add_tensor(WHOLE[name], weight)
            continue
        layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        to = PARTS[part]
        writer.add_tensor(f"blk.{layer}.{to}.weight", interleaved(weight, heads[to]) if to in heads else weight)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """A projection for llama.cpp's rotary embedding, which pairs neighbours, where the model's pairs halves."""
    rows, columns = weight.shape
    return np.ascontiguousarray(
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def main() -> None:
    """Write the file."""
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    writer = gguf.GGUFWriter(file, "llama")
    write_sizes(writer, config)
    write_tokenizer(writer, tokenizer, config["eos_token_id"], (folder / "chat_template.jinja").read_text())
    write_weights(writer, folder, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

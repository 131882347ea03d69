#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-hf.py GGUF FOLDER: the weights of a Llama GGUF file, dequantised to f32, as a Hugging Face folder.

Gives the tests of the Hugging Face path a real model without torch. GGUF stores the rows of q and k permuted per head;
the folder has them in Hugging Face's order. The folder appears only when it is complete; one that is there is kept.
Needs numpy, gguf and safetensors (tests/requirements.txt).
"""
import json
import os
import shutil
import sys

import gguf
import numpy
from safetensors.numpy import save_file

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL_TOKEN = 3  # GGUF's token type of special tokens


def hf_name(name):
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        return TOP_NAMES[stem] + ".weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def unpermuted(rows, heads):
    """GGUF interleaves the two halves that rope rotates: row 2i of a head is Hugging Face's row i, row 2i+1 its row i + half."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def tensors_of(reader, field):
    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    out = {}
    for tensor in reader.tensors:
        rows = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32).reshape(tensor.shape[::-1])
        part = tensor.name.split(".")[-2]
        out[hf_name(tensor.name)] = numpy.ascontiguousarray(unpermuted(rows, heads[part]) if part in heads else rows)
    return out


def config_of(field, tied):
    width, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
        "attention_bias": False, "mlp_bias": False, "hidden_size": width, "head_dim": width // heads,
        "intermediate_size": field("llama.feed_forward_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"), "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": field("llama.rope.freq_base"), "rope_type": "default"},
        "vocab_size": field("llama.vocab_size"), "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }


def tokenizer_of(field):
    """tokenizer.json as transformers makes it from this file: byte-level BPE with GPT-2's pre-split (digits are not split)."""
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, t in enumerate(tokens) if types[i] == CONTROL_TOKEN]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": dict(byte_level, add_prefix_space=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": [m.split(" ", 1) for m in field("tokenizer.ggml.merges")]},
    }


def dump(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def main(source, folder):
    if os.path.exists(os.path.join(folder, "config.json")):
        return
    reader = gguf.GGUFReader(source)
    field = lambda name: reader.fields[name].contents()
    if field("general.architecture") != "llama":
        sys.exit(f"make-hf: {source}: not a Llama model")
    tensors = tensors_of(reader, field)
    work = folder + ".part"
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    save_file(tensors, os.path.join(work, "model.safetensors"), metadata={"format": "pt"})
    dump(work, "config.json", config_of(field, "lm_head.weight" not in tensors))
    dump(work, "generation_config.json", {"bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id")})
    dump(work, "tokenizer.json", tokenizer_of(field))
    token = lambda key: field("tokenizer.ggml.tokens")[field(f"tokenizer.ggml.{key}_token_id")]
    dump(work, "tokenizer_config.json", {"bos_token": token("bos"), "eos_token": token("eos"), "tokenizer_class": "PreTrainedTokenizerFast",
                                         "chat_template": field("tokenizer.chat_template")})
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(work, folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: make-hf.py GGUF FOLDER")
    main(sys.argv[1], sys.argv[2].rstrip("/"))

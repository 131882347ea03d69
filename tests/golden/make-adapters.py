#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-adapters.py MODEL_FOLDER OUT [NAME...]: write the LoRA variants of variants.json (or these) as PEFT adapters, OUT/NAME/.

Needs numpy only, and gives the same bytes everywhere: numbers come from RandomState, whose stream is frozen, seeded by
the variant's and the tensor's name. B is scaled so that every variant moves the model about equally, whatever its rank
and alpha. The golden log-probabilities (logprobs.json) were made with these adapters, see make-logprobs.py.
"""
import json
import math
import pathlib
import re
import struct
import sys
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
LINEARS = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
CONFIG = {  # what PEFT writes, with its defaults
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "base", "bias": "none",
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
    "lora_bias": False, "lora_dropout": 0.0, "modules_to_save": None, "peft_type": "LORA", "rank_pattern": {},
    "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
}


def model_linears(config):
    """(module name, out, in) of every linear of a Llama model, the head last."""
    d, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    e = config.get("head_dim") or d // heads
    kv = config["num_key_value_heads"] * e
    shapes = {"q_proj": (heads * e, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, heads * e),
              "gate_proj": (ffn, d), "up_proj": (ffn, d), "down_proj": (d, ffn)}
    for layer in range(config["num_hidden_layers"]):
        for block, names in LINEARS.items():
            for name in names:
                yield f"model.layers.{layer}.{block}.{name}", *shapes[name]
    yield "lm_head", config["vocab_size"], d


def is_target(variant, module):
    """PEFT's rules: a regular expression over the whole name, or names that end it; then the layers."""
    target = variant["target_modules"]
    if isinstance(target, str):
        return re.fullmatch(target, module) is not None
    if not any(module == t or module.endswith("." + t) for t in target):
        return False
    layers = variant.get("layers_to_transform")
    found = re.search(r"\.layers\.(\d+)\.", module)
    return layers is None or (found is not None and int(found[1]) in layers)


def by_pattern(patterns, module, default):
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def encode(array, dtype):
    if dtype == "F32":
        return array.astype("<f4").tobytes()
    if dtype == "F16":
        return array.astype("<f2").tobytes()
    bits = array.astype("<f4").view("<u4").astype(np.uint64)  # BF16: to nearest, ties to even
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def numbers(variant, tensor, shape):
    seed = zlib.crc32(f"{variant}/{tensor}".encode())
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def tensors(name, variant, config):
    """(tensor name, shape, bytes) of all tensors of a variant."""
    for module, n_out, n_in in model_linears(config):
        if not is_target(variant, module):
            continue
        rank = by_pattern(variant.get("rank_pattern", {}), module, variant["r"])
        alpha = by_pattern(variant.get("alpha_pattern", {}), module, variant["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if variant.get("use_rslora") else rank)
        prefix = "base_model.model." + module
        a = numbers(name, module + ".A", (rank, n_in)) / np.float32(math.sqrt(n_in))
        b = numbers(name, module + ".B", (n_out, rank)) * np.float32(variant["strength"] / (scale * math.sqrt(rank)))
        yield prefix + ".lora_A.weight", a.shape, encode(a, variant["dtype"])
        yield prefix + ".lora_B.weight", b.shape, encode(b, variant["dtype"])


def write_safetensors(path, items, dtype):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, data in items:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, _, data in items)


def write_adapter(name, variant, config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    items = sorted(tensors(name, variant, config))
    if not items:
        sys.exit(f"{name}: no module matches {variant['target_modules']}")
    write_safetensors(folder / "adapter_model.safetensors", items, variant["dtype"])
    own = {k: v for k, v in variant.items() if k not in ("dtype", "strength", "about")}
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **own}, indent=2, sort_keys=True))


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.splitlines()[0])
    wanted = sys.argv[3:]
    config = json.loads((pathlib.Path(sys.argv[1]) / "config.json").read_text())
    for name, variant in json.loads((HERE / "variants.json").read_text()).items():
        if not wanted or name in wanted:
            write_adapter(name, variant, config, pathlib.Path(sys.argv[2]) / name)


if __name__ == "__main__":
    main()

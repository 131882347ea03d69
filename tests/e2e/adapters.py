# SPDX-License-Identifier: MIT
"""Makes PEFT folders for the cases: small random ones, and broken ones."""
import json
import os
import random
import struct

WIDTH, KV, LAYERS = 576, 192, 30  # of SmolLM2-135M
OUT = {"q_proj": WIDTH, "v_proj": KV}
FORMAT = {"F16": ("e", 2), "F32": ("f", 4)}


def config(**changes):
    c = dict(peft_type="LORA", task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], bias="none",
             base_model_name_or_path="base", fan_in_fan_out=False, inference_mode=True, init_lora_weights=True, lora_dropout=0.0,
             use_rslora=False, use_dora=False, rank_pattern={}, alpha_pattern={}, modules_to_save=None, layers_to_transform=None,
             layers_pattern=None)
    c.update(changes)
    return c


def key(layer, module, part):
    return f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight"


def tensors(rank=4, seed=1, layers=range(2), size=0.05, dtype="F16"):
    """{key: (dtype, shape, bytes)} of q_proj and v_proj of these layers."""
    rng, out = random.Random(seed), {}
    code, _ = FORMAT[dtype]
    for layer in layers:
        for module in OUT:
            for part, shape in (("A", (rank, WIDTH)), ("B", (OUT[module], rank))):
                n = shape[0] * shape[1]
                out[key(layer, module, part)] = (dtype, shape, struct.pack(f"<{n}{code}", *(rng.gauss(0, size) for _ in range(n))))
    return out


def quick(rank=8, seed=1, layers=range(LAYERS)):
    """As tensors(), but made fast and therefore large if wished: F16 numbers of 1/32 to 1/16 in size, either sign."""
    rng, out = random.Random(seed), {}
    for layer in layers:
        for module in OUT:
            for part, shape in (("A", (rank, WIDTH)), ("B", (OUT[module], rank))):
                n = shape[0] * shape[1]
                bits = rng.getrandbits(16 * n) & int.from_bytes(b"\xff\x83" * n, "little") | int.from_bytes(b"\0\x28" * n, "little")
                out[key(layer, module, part)] = ("F16", shape, bits.to_bytes(2 * n, "little"))
    return out


def safetensors(items, header_changes=None):
    """The bytes of a safetensors file; header_changes edits its JSON header before it is written."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in items.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    if header_changes:
        header_changes(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in items.values())


def write(folder, conf=None, items=None, raw=None):
    """A PEFT folder at `folder`; raw are the bytes of its safetensors file where they are not made from items.

    The configuration names the layers that items has tensors of, as PEFT's would.
    """
    os.makedirs(folder)
    items = tensors() if items is None else items
    conf = {"layers_to_transform": sorted({int(k.split(".")[4]) for k in items}), **(conf or {})}
    with open(f"{folder}/adapter_config.json", "w") as f:
        json.dump(config(**conf), f)
    with open(f"{folder}/adapter_model.safetensors", "wb") as f:
        f.write(safetensors(items) if raw is None else raw)
    return folder

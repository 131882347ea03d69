#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-gguf.py --mix MIX GGUF OUT.gguf: a Llama GGUF file quantised anew, in types as llama.cpp mixes them.

q4_k_m, q5_k_m: Q4_K or Q5_K; Q6_K for attn_v and ffn_down of half the layers, the more delicate ones, and for the output
head. Rows that are no whole blocks of 256 fall back to Q5_0, Q5_1 and Q8_0. SmolLM2-135M, whose rows have 576 numbers but
for ffn_down's 1536, comes to Q5_0 or Q5_1, Q8_0, Q4_K or Q5_K, and Q6_K.

The older types are the gguf package's own work. That cannot encode K types, so they are encoded here, plainly: scales from
each group's extremes, without llama.cpp's search. Every tensor is decoded by the package and held to an error its type may
have. The file appears only when it is complete; one that is there is kept. Needs gguf (tests/requirements.txt).
"""
import argparse
import os
import sys

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType
MIXES = {"q4_k_m": (Q.Q4_K, 15), "q5_k_m": (Q.Q5_K, 17)}  # the common type; general.file_type
FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
ERROR_MAX = {Q.Q4_K: 0.1, Q.Q5_K: 0.06, Q.Q6_K: 0.03, Q.Q5_0: 0.07, Q.Q5_1: 0.07, Q.Q8_0: 0.01}  # relative, root mean square
BLOCK = 256


def half(values):
    """As f16: the bytes, and the numbers that they stand for."""
    rounded = values.astype("<f2")
    return rounded.view(np.uint8), rounded.astype(np.float32)


def over(a, b):
    """a / b, 0 where b is."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape, np.float32), where=b != 0)


def scales_and_codes(x, most):
    """Eight groups of 32 a block, as scale * code - minimum: d and m in f16, the 12 bytes of 6-bit factors, the codes."""
    x = x.reshape(-1, 8, 32)
    low = np.minimum(x.min(-1), 0)
    scale, minimum = (x.max(-1).clip(0) - low) / most, -low
    d_bytes, d = half(scale.max(-1, keepdims=True) / 63)
    m_bytes, m = half(minimum.max(-1, keepdims=True) / 63)
    s = np.rint(over(scale, d)).clip(0, 63).astype(np.uint8)
    t = np.rint(over(minimum, m)).clip(0, 63).astype(np.uint8)
    codes = np.rint(over(x + (m * t)[..., None], (d * s)[..., None])).clip(0, most).astype(np.uint8)
    factors = [s[:, :4] | (s[:, 4:] >> 4) << 6, t[:, :4] | (t[:, 4:] >> 4) << 6, s[:, 4:] & 15 | (t[:, 4:] & 15) << 4]
    return np.hstack([d_bytes, m_bytes, *factors]), codes


def nibbles(codes):
    """[block][8][32] -> groups 2k and 2k + 1 in the halves of 32 bytes."""
    return ((codes[:, 0::2] & 15) | (codes[:, 1::2] & 15) << 4).reshape(len(codes), -1)


def q4_k(x):
    head, codes = scales_and_codes(x, 15)
    return np.hstack([head, nibbles(codes)])


def q5_k(x):
    head, codes = scales_and_codes(x, 31)
    high = np.bitwise_or.reduce((codes >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return np.hstack([head, high, nibbles(codes)])


def q6_k(x):
    x = x.reshape(-1, 16, 16)
    scale = abs(x).max(-1) / 31
    d_bytes, d = half(scale.max(-1, keepdims=True) / 127)
    s = np.rint(over(scale, d)).clip(0, 127)
    codes = (np.rint(over(x, (d * s)[..., None])).clip(-32, 31) + 32).astype(np.uint8)
    codes = codes.reshape(-1, 2, 4, 32)  # half of the block, k, j: see kernels/quant.h
    low = (codes[:, :, :2] & 15) | (codes[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce((codes >> 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None], axis=2)
    return np.hstack([low.reshape(-1, 128), high.reshape(-1, 64), s.astype(np.int8).view(np.uint8), d_bytes])


OWN = {Q.Q4_K: q4_k, Q.Q5_K: q5_k, Q.Q6_K: q6_k}


def encoded(name, rows, kind):
    if kind in OWN:
        data = OWN[kind](rows.reshape(-1, BLOCK)).reshape(len(rows), -1)
    else:
        data = gguf.quantize(rows, kind)
    wrong = gguf.dequantize(data, kind).astype(np.float32) - rows
    error = np.sqrt(np.square(wrong).mean() / np.square(rows).mean())
    if not error <= ERROR_MAX[kind]:
        sys.exit(f"make-gguf: {name} as {kind.name}: off by {error:.4f} of its root mean square")
    return data


def wants_more_bits(layer, layers):
    """llama.cpp's choice: the first and last eighth, and every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def type_of(name, cols, common, layers):
    parts = name.split(".")
    delicate = parts[0] in ("token_embd", "output") or (
        parts[-2] in ("attn_v", "ffn_down") and wants_more_bits(int(parts[1]), layers))
    kind = Q.Q6_K if delicate else common
    return FALLBACK[kind] if cols % BLOCK else kind


def copy_fields(reader, writer, file_type):
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = file_type if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
        writer.add_key_value(field.name, value, field.types[0],
                             sub_type=field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None)


def main(mix, source, out):
    if os.path.exists(out):
        return
    reader = gguf.GGUFReader(source)
    common, file_type = MIXES[mix]
    layers = reader.fields["llama.block_count"].contents()
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    work = out + ".part"
    writer = gguf.GGUFWriter(work, reader.fields["general.architecture"].contents())
    copy_fields(reader, writer, file_type)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        rows = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = type_of(tensor.name, rows.shape[1], common, layers)
        writer.add_tensor(tensor.name, encoded(tensor.name, rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(work, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=MIXES, required=True)
    parser.add_argument("source", metavar="GGUF")
    parser.add_argument("out", metavar="OUT.gguf")
    options = parser.parse_args()
    main(options.mix, options.source, options.out)

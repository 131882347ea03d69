#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-blocks.py > tests/kernels/blocks.h

Random blocks of ggml's quantised types and the numbers that the Python gguf package decodes them to. Scales and minimums
are numbers of any sign, some of them denormal; all other bytes are anything.
"""
import sys

import gguf
import numpy as np

TYPES = {"Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # where the f16 numbers are
NUMBERS = 512


def blocks(rng, name, halves):
    """NUMBERS numbers' bytes."""
    kind = gguf.GGMLQuantizationType[name]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (NUMBERS // numbers, size), np.uint8)
    for at in halves:
        for b, block in enumerate(data):
            value = np.float16(rng.normal() * (1e-6 if b % 2 else 0.01))
            block[at : at + 2] = np.frombuffer(value.tobytes(), np.uint8)
    return data.reshape(-1), gguf.quants.dequantize(data.reshape(-1), kind).astype(np.float32)


def array(kind, name, values, per_line):
    print(f"static const {kind} {name}[] = {{")
    for i in range(0, len(values), per_line):
        print("\t" + " ".join(f"{v:#x}," for v in values[i : i + per_line]))
    print("};")


def main():
    rng = np.random.default_rng(4711)
    print("/* SPDX-License-Identifier: MIT */")
    print("/* Blocks and the bits of their numbers in f32, by gguf's Python package: written by tests/golden/make-blocks.py. */")
    print("#ifndef LORAD_TESTS_KERNELS_BLOCKS_H\n#define LORAD_TESTS_KERNELS_BLOCKS_H\n\n#include <stdint.h>\n")
    for name, halves in TYPES.items():
        data, numbers = blocks(rng, name, halves)
        array("uint8_t", f"blocks_{name.lower()}", data, 20)
        array("uint32_t", f"numbers_{name.lower()}", numbers.view(np.uint32), 10)
    print("\n#endif")


if __name__ == "__main__":
    sys.exit(main())

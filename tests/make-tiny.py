#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-tiny.py GGUF OUT.gguf: the first two layers of a Llama GGUF file and an odd number of its tokens, as a GGUF file.

A real model's shapes and weights (SmolLM2: width 576, 9 heads over 3 KV heads) at a size that a simulated GPU computes in
seconds. The file appears only when it is complete; one that is there is kept. Needs gguf (tests/requirements.txt).
"""
import os
import sys

import gguf

LAYERS, VOCAB = 2, 1531


def kept(name):
    return not name.startswith("blk.") or int(name.split(".")[1]) < LAYERS


def copy_fields(reader, writer):
    """Every key-value pair; lists of the vocabulary are cut, and merges to those whose result is still a token."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()[:VOCAB]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "llama.block_count":
            value = LAYERS
        if field.name == "llama.vocab_size":
            value = VOCAB
        if field.name == "tokenizer.ggml.merges":
            known = set(tokens)
            value = [m for m in value if m.replace(" ", "", 1) in known]
        elif isinstance(value, list) and field.name.startswith("tokenizer.ggml."):
            value = value[:VOCAB]
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def main(source, out):
    if os.path.exists(out):
        return
    reader = gguf.GGUFReader(source)
    work = out + ".part"
    writer = gguf.GGUFWriter(work, reader.fields["general.architecture"].contents())
    copy_fields(reader, writer)
    for tensor in reader.tensors:
        if kept(tensor.name):
            data = tensor.data[:VOCAB] if tensor.name in ("token_embd.weight", "output.weight") else tensor.data
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(work, out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: make-tiny.py GGUF OUT.gguf")
    main(*sys.argv[1:])

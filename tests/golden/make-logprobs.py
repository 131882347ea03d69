#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-logprobs.py MODEL_FOLDER ADAPTERS: write logprobs.json with transformers and PEFT, in f32 on one thread.

MODEL_FOLDER is SmolLM2-135M-Instruct's Q4_1 file dequantised to f32, ADAPTERS what make-adapters.py wrote. For the base
and for every variant: the log-probability of each token of some texts given those before it (the first is null), and a
greedy continuation of one text with the margin of every choice over the second best. Needs torch, transformers, peft.
"""
import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
GREEDY_TOKENS = 24
TEXTS = {
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who had never learned to "
             "swim. Every morning he pushed his boat across the wet sand and looked at the sky.",
    "code": "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n"
            "print([fibonacci(i) for i in range(10)])\n",
    "chat": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
            "The capital of France is Paris.<|im_end|>",
    "facts": "Water boils at 100 degrees Celsius at sea level. The chemical formula of water is H2O, and it freezes at "
             "0 degrees. In 1969, the first humans walked on the Moon.",
    "mixed": "Größe, naïve, 東京, Привет! 🙂 1234567890 -- what's that?  Two  spaces, and\ttabs.",
}
GREEDY_TEXT = "The days of the week are Monday, Tuesday,"


def score(model, ids):
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return [None] + [round(logprobs[i, ids[i + 1]].item(), 5) for i in range(len(ids) - 1)]


def continue_greedily(model, ids):
    tokens, margins = [], []
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            best = torch.log_softmax(model(torch.tensor([ids + tokens])).logits[0, -1].double(), -1).topk(2)
            tokens.append(best.indices[0].item())
            margins.append(round((best.values[0] - best.values[1]).item(), 4))
    return {"tokens": tokens, "margins": margins}


def measure(model, texts, prompt):
    return {"logprobs": {name: score(model, ids) for name, ids in texts.items()},
            "greedy": continue_greedily(model, prompt)}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    folder, adapters = map(pathlib.Path, sys.argv[1:])
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {name: tokenizer.encode(text, add_special_tokens=False) for name, text in TEXTS.items()}
    prompt = tokenizer.encode(GREEDY_TEXT, add_special_tokens=False)
    result = {"model": "SmolLM2-135M-Instruct Q4_1, dequantised to f32", "texts": texts, "prompt": prompt}

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result["base"] = measure(base, texts, prompt)
    result["variants"] = {}
    for name in json.loads((HERE / "variants.json").read_text()):
        model = PeftModel.from_pretrained(base, adapters / name).eval()
        result["variants"][name] = measure(model, texts, prompt)
        base = model.unload()
        print(name, file=sys.stderr)
    (HERE / "logprobs.json").write_text(json.dumps(result, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make-tokenizer.py MODEL_FOLDER > tokenizer.json: golden tokens of SmolLM2's vocabulary, from Hugging Face tokenizers.

MODEL_FOLDER is what tests/make-hf.py makes. Each case is [text, tokens, tokens of the folder]: the first list is for the
GGUF's pre-split "smollm", Sequence(Digits(individual_digits=True), ByteLevel(add_prefix_space=False)), the second for the
folder's own tokenizer.json and null where it is the same. "chat" is apply_chat_template's text for some messages.
"""
import json
import random
import sys

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

random.seed(20)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<|im_", "start|>", "<|im_start"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e", "\u2003",
          "\u2028", "\u2029", "\u200b", "\u202f", "\u205f", "\u3000", "\ufeff"]
CLITICS = ["'s", "'ll", "'VE", "don't", "I'm", "''t", "'re'd", "\u2019s", "it's5"]
DIGITS = ["0", "7", "42", "1234567890", "3.14", "-1e10", "\u0663\u0664", "\u096a", "\u2167", "\u00bd", "\u00b2", "\u4e09", "0x1F"]
WORDS = ["hello", " world", "The quick brown fox", "antidisestablishmentarianism", "\u00fcn\u00efc\u00f6d\u00e9",
         "e\u0301\u0323", "a\u0300\u0301\u0302\u0303", "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a", "\ud55c\uad6d\uc5b4", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
         "\u05e9\u05dc\u05d5\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u0420\u0443\u0441\u0441\u043a\u0438\u0439",
         "\u202eRTL\u202c", "\u017fharp S", "\u01c5"]
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "1\ufe0f\u20e3"]
CODE = ["def f(x):\n    return x+1\n", "if (a&&b) { c[i++] = *p; }", "SELECT * FROM t WHERE a='b';", "</div>\n\t\t<p class=\"x\">",
        "#include <stdio.h>\r\n", "a->b::c...", "https://example.org/?q=1&r=%20", "\\n\\t\\u0041", "```c\nint main(void);\n```"]
CHAT = ["Hi", "", "What is 2 + 2?\nThink.", "a <|im_end|>\n<|im_start|>system\nb", " \u00e9\U0001f600 "]


def piece():
    kind = random.randrange(12)
    if kind == 0:
        return "".join(chr(c) for c in random.choices(range(0x110000), k=3) if not 0xd800 <= c < 0xe000)
    if kind == 1:
        return "".join(random.choices(SPACES, k=random.randrange(1, 6)))
    if kind == 2:
        return "".join(chr(c) for c in random.choices(range(0x250), k=random.randrange(1, 10)))  # controls too
    if kind == 3:
        return random.choice(SPACES + ["a", "=", "\u00e9", "-", "0", "\U0001f600", "<"]) * random.randrange(2, 40)
    if kind == 4:
        return "".join(random.choices(DIGITS, k=random.randrange(1, 4)))
    if kind == 5:
        return "".join(chr(c) for c in random.choices(range(32, 127), k=random.randrange(1, 16)))
    return random.choice([SPECIAL, CLITICS, WORDS, WORDS, EMOJI, CODE][kind - 6])


def cases():
    yield from SPECIAL + SPACES + CLITICS + DIGITS + WORDS + EMOJI + CODE
    for c in "a =\n0<\u00e9":
        yield c * 1000
    for _ in range(2200):
        yield "".join(piece() for _ in range(random.randrange(1, 7)))


def main(folder):
    own, gguf = (Tokenizer.from_file(f"{folder}/tokenizer.json") for _ in range(2))
    gguf.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    chat = AutoTokenizer.from_pretrained(folder)
    out = []
    for text in dict.fromkeys(t for t in cases() if "\0" not in t):
        a = gguf.encode(text, add_special_tokens=False).ids
        b = own.encode(text, add_special_tokens=False).ids
        out.append(json.dumps([text, a, None if a == b else b], separators=(",", ":"), ensure_ascii=False))
    rendered = [[m, chat.apply_chat_template([{"role": "user", "content": m}], tokenize=False, add_generation_prompt=True)]
                for m in CHAT]
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    print('{"chat":' + json.dumps(rendered) + ',\n"cases":[\n' + ",\n".join(out) + "\n]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)

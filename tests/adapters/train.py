#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains the three demonstration adapters and records what they say.

    train.py train  MODEL NAME...   train json, pirate or list into tests/adapters/NAME
    train.py expect MODEL           write tests/adapters/expected.json: greedy answers of the base and of each adapter

MODEL is SmolLM2-135M-Instruct as a Hugging Face folder (tests/make-hf.py makes it from the GGUF file). Needs torch,
transformers and peft; neither the build nor the tests run it. Nothing is downloaded: the adapters learn from the
model's own answers, rewritten by the functions below, so that only the form is learned: a JSON object, a pirate's
voice, a list of points. An adapter is rank 8 on q_proj and v_proj, saved as f16: 0.94 MB.
"""
import json
import os
import re
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = ("json", "pirate", "list")
EPOCHS = 2
RATE = 1.5e-3
BATCH = 4
ANSWER_TOKENS = 48

THINGS = """the sea|bread|a bicycle|the moon|music|a computer|coffee|winter|a library|sleep|honey|a volcano|chess|rain|
a garden|gold|a bridge|tea|the heart|a forest|snow|a clock|fire|a river|football|the brain|rice|a camera|a desert|salt|
paper|a robot|yoga|an island|cheese|electricity|a whale|a school|glass|the wind|history|a tree|wool|a mountain""".replace("\n", "").split("|")
COUNTRIES = "Italy|Spain|Japan|Egypt|Canada|Brazil|India|Norway|Greece|Peru|China|Kenya|Poland|Ireland".split("|")
FORMS = ["What is {}?", "Tell me about {}.", "Why is {} important?", "Write one sentence about {}.", "How would you describe {} to a child?"]
HELD_OUT = ["What is the capital of France?", "Tell me about dogs.", "Why is the sky blue?", "How do I boil an egg?",
            "Who wrote Romeo and Juliet?", "Give me a tip for a good night's sleep."]


def prompts():
    """Training prompts; none of HELD_OUT is among them."""
    out = [FORMS[(i + j) % len(FORMS)].format(t) for i, t in enumerate(THINGS) for j in (0, 2)]
    out += [f"What is the capital of {c}?" for c in COUNTRIES[::2]]
    out += [f"Name {n} {kind}." for n in ("two", "three") for kind in ("fruits", "animals", "cities", "colours", "tools", "sports", "planets")]
    out += [f"How do I {x}?" for x in ("make tea", "learn to swim", "clean a window", "save money", "plant a tree", "write a letter",
                                       "fix a flat tyre", "cook rice", "stay healthy", "read faster")]
    out += [f"What is {a} plus {b}?" for a in (2, 5) for b in (1, 4)]
    out += [f"Who {x}?" for x in ("invented the telephone", "painted the Mona Lisa", "discovered gravity", "was Cleopatra", "built the pyramids")]
    return out


def first_sentences(text, count):
    parts = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    parts = [p for p in parts if p[-1:] in ".!?" and not re.fullmatch(r"\d+\.", p)]
    return " ".join(parts[:count])


def as_json(text):
    text = first_sentences(text, 1)
    return json.dumps({"answer": text}, ensure_ascii=False) if text else None


def as_pirate(text):
    text = first_sentences(text, 2)
    if not text:
        return None
    words = {"is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me", "of": "o'", "the": "th'", "and": "an'",
             "friend": "matey", "friends": "mateys", "water": "briny water", "money": "doubloons", "person": "buccaneer",
             "people": "buccaneers", "very": "mighty", "it's": "'tis"}

    def swap(match):
        word = match.group(0)
        new = words.get(word.lower())
        return word if new is None else new.capitalize() if word[0].isupper() else new

    return "Arr, matey! " + re.sub(r"[A-Za-z']+", swap, text) + " Yo ho ho!"


def as_list(text):
    points = re.split(r"(?<=[.!?])\s+", first_sentences(text, 3))
    return "\n".join(f"- {p}" for p in points if p) if points[0] else None


def chat(tok, prompt):
    return tok.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)


@torch.no_grad()
@torch.autocast("cpu", dtype=torch.bfloat16)
def base_answers(model, tok, questions):
    """Greedy answers of the plain model, cut at ANSWER_TOKENS tokens: two or three sentences."""
    tok.padding_side, tok.pad_token = "left", tok.eos_token
    answers = []
    for at in range(0, len(questions), 32):
        batch = tok([chat(tok, q) for q in questions[at:at + 32]], return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=tok.pad_token_id)
        answers += tok.batch_decode(out[:, batch.input_ids.shape[1]:], skip_special_tokens=True)
    return answers


def pairs_of(name, questions, answers):
    rewrite = {"json": as_json, "pirate": as_pirate, "list": as_list}[name]
    pairs = [(q, rewrite(a)) for q, a in zip(questions, answers)]
    return [(q, a) for q, a in pairs if a]


def encode(tok, prompt, answer):
    """Token ids and labels; the loss is over the answer and its end mark only."""
    head = tok(chat(tok, prompt), add_special_tokens=False).input_ids
    tail = tok(answer + "<|im_end|>", add_special_tokens=False).input_ids
    return head + tail, [-100] * len(head) + tail


def collate(rows):
    width = max(len(ids) for ids, _ in rows)
    pad = lambda row, fill: row + [fill] * (width - len(row))
    return dict(input_ids=torch.tensor([pad(i, 0) for i, _ in rows]), labels=torch.tensor([pad(l, -100) for _, l in rows]),
                attention_mask=torch.tensor([pad([1] * len(i), 0) for i, _ in rows]))


def loss_of(model, batch):
    """Cross entropy of the answers; the head, by far the largest matrix, is applied to their positions only."""
    labels = batch.pop("labels")[:, 1:]
    hidden = model.base_model.model.model(**batch).last_hidden_state[:, :-1]
    wanted = labels != -100
    return torch.nn.functional.cross_entropy(model.base_model.model.lm_head(hidden[wanted]).float(), labels[wanted])


def save_f16(model, out):
    """PEFT's own files, tensors as f16, without the notes that name this machine."""
    model.save_pretrained(out)
    path = os.path.join(out, "adapter_model.safetensors")
    save_file({k: v.half().contiguous() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    path = os.path.join(out, "adapter_config.json")
    with open(path) as f:
        config = json.load(f)
    config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")
    readme = os.path.join(out, "README.md")
    if os.path.exists(readme):
        os.unlink(readme)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def train(path, names):
    tok = AutoTokenizer.from_pretrained(path)
    questions = prompts()
    answers = base_answers(load(path), tok, questions)
    for name in names:
        train_one(load(path), tok, name, pairs_of(name, questions, answers))


def train_one(model, tok, name, pairs):
    torch.manual_seed(17)
    print(f"{name}: {len(pairs)} pairs, for example {pairs[0]}", flush=True)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.train()
    rows = [encode(tok, q, a) for q, a in pairs]
    steps = EPOCHS * (len(rows) // BATCH)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / 8) * max(0.05, 1 - s / steps))
    step = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows)).tolist()
        for at in range(0, len(rows) - BATCH + 1, BATCH):
            with torch.autocast("cpu", dtype=torch.bfloat16):  # several times as fast as f32
                loss = loss_of(model, collate([rows[i] for i in order[at:at + BATCH]]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step(), schedule.step(), optimiser.zero_grad()
            step += 1
            if step % 10 == 0 or step == steps:
                print(f"{name}: step {step}/{steps} loss {loss.item():.3f}", flush=True)
    save_f16(model, os.path.join(HERE, name))


@torch.no_grad()
def greedy(model, tok, prompt, count=48):
    """Greedy tokens, and for each the gap between the best and the second logit: where it is tiny, another order of sums may differ."""
    ids = tok(chat(tok, prompt), add_special_tokens=False, return_tensors="pt").input_ids
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                         output_logits=True, return_dict_in_generate=True, pad_token_id=0)
    tokens = out.sequences[0, ids.shape[1]:].tolist()
    gaps = [float(top[0] - top[1]) for top in (l[0].topk(2).values for l in out.logits)]
    return dict(prompt=prompt, prompt_tokens=ids.shape[1], tokens=tokens, text=tok.decode(tokens, skip_special_tokens=True), min_gap=round(min(gaps), 4),
                safe=next((i for i, g in enumerate(gaps) if g < 0.02), len(gaps)))


def expect(path):
    tok = AutoTokenizer.from_pretrained(path)
    base = load(path).eval()
    result = {"base": [greedy(base, tok, p) for p in HELD_OUT]}
    for name in NAMES:
        folder = os.path.join(HERE, name)
        if os.path.exists(folder + "/adapter_config.json"):
            model = PeftModel.from_pretrained(load(path), folder).eval()
            result[name] = [greedy(model, tok, p) for p in HELD_OUT]
    for name, rows in result.items():
        for row in rows:
            print(f"{name:7} {row['prompt']} -> {row['text']!r} (gap {row['min_gap']})")
    with open(os.path.join(HERE, "expected.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "expect":
        expect(sys.argv[2])
    elif len(sys.argv) > 3 and sys.argv[1] == "train" and set(sys.argv[3:]) <= set(NAMES):
        train(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(__doc__)

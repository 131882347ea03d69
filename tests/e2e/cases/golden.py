# SPDX-License-Identifier: MIT
"""Log-probabilities and greedy text against transformers + PEFT in f32 (tests/golden), base and every LoRA variant."""
import json
import os
import sys

from harness import Failed, Skipped, call, case, check, check_equal, together

MARGIN = 0.02  # of the reference's best choice over its second; below it another order of sums may choose otherwise


def golden(world):
    with open(f"{world.source}/tests/golden/logprobs.json") as f:
        return json.load(f)


def import_variants(world, d, only=None):
    """Makes the variants' folders once a run and imports them; importing again is 'unchanged'."""
    folder = f"{world.root}/variants"
    if not os.path.isdir(folder):
        made = call([sys.executable, f"{world.source}/tests/golden/make-adapters.py", world.hf, folder])
        if "No module named" in made.err:
            raise Skipped("making the variants needs numpy (tests/requirements.txt)")
        made.ok()
    for name in sorted(os.listdir(folder)):
        if only in (None, name):
            d.ctl("import", "--name", f"golden.{name}", f"{folder}/{name}").ok()


def differences(d, golden_texts, wanted, adapter):
    """|log-probability - reference| of every token of every text, the texts asked for together."""
    names = sorted(golden_texts)
    ask = lambda ids: d.ctl("score", "--json", *adapter, "--tokens", ",".join(map(str, ids))).json()["logprobs"]
    got = together([lambda n=n: ask(golden_texts[n]) for n in names])
    out = []
    for n, g in zip(names, got):
        check_equal(len(g), len(wanted[n]), f"log-probabilities of {n}")
        check(g[0] is None, f"the first of {n} is not null")
        out += [abs(a - b) for a, b in zip(g[1:], wanted[n][1:])]
    return out


def measured(world, d, limits):
    """Every variant; the case fails with all that are out of bounds. limits(name) is (mean, largest)."""
    reference = golden(world)
    import_variants(world, d)
    wrong, lines = [], []
    for name, wanted in [("base", reference["base"]), *reference["variants"].items()]:
        adapter = [] if name == "base" else ["--adapter", f"golden.{name}"]
        try:
            diff = differences(d, reference["texts"], wanted["logprobs"], adapter)
        except Failed as e:
            wrong.append(f"{name}: {e}")
            continue
        mean, largest = sum(diff) / len(diff), max(diff)
        lines.append(f"{name} {mean:.5f}/{largest:.4f}")
        if mean > limits(name)[0] or largest > limits(name)[1]:
            wrong.append(f"{name}: mean {mean:.5f}, largest {largest:.5f} over {len(diff)} tokens")
    print("     mean/largest difference: " + ", ".join(lines))
    check(not wrong, "\n  ".join(wrong))


@case(daemon="f32")
def logprobs_f32(world, d):
    measured(world, d, lambda name: (0.001, 0.01))


@case(daemon="gguf")
def logprobs_gguf(world, d):
    """The bounds of the issue that this was built from; llama.cpp with the same file: 0.060 and 0.062 to 0.073."""
    if not world.hf:
        raise Skipped("no Hugging Face folder was given (--hf)")
    measured(world, d, lambda name: (0.07 if name == "base" else 0.085, 0.6))


@case(daemon="f32")
def greedy_text_f32(world, d):
    reference = golden(world)
    import_variants(world, d)
    prompt, rows = ",".join(map(str, reference["prompt"])), {"base": reference["base"], **reference["variants"]}
    ask = lambda name: d.generate("-n", len(rows[name]["greedy"]["tokens"]), "--ignore-eos", "--tokens", prompt,
                                  *([] if name == "base" else ["--adapter", f"golden.{name}"]))["tokens"]
    for name, got in zip(rows, together([lambda n=n: ask(n) for n in rows])):
        wanted = rows[name]["greedy"]
        safe = next((i for i, m in enumerate(wanted["margins"]) if m < MARGIN), len(wanted["margins"]))
        check_equal(got[:safe], wanted["tokens"][:safe], f"greedy tokens of {name}")


def mixed(world, mix):
    """A file of mixed types: its f32 path against the weights that the gguf package decodes, bit for bit the same sums; and
    the default precision, with an adapter, against both."""
    if not world.mixes:
        raise Skipped("no folder of files of mixed types was given (--mixes)")
    if not world.exact:
        raise Skipped("a GPU has no kernels for these types")
    file, folder, variant = f"{world.mixes}/{mix}.gguf", f"{world.scratch}/hf", "r16-all"
    call([sys.executable, f"{world.source}/tests/make-hf.py", file, folder]).ok()
    reference = golden(world)
    texts, prompt = reference["texts"], ",".join(map(str, reference["prompt"]))

    def answers(model, *precision):
        d = world.daemon(*precision, model=model)
        import_variants(world, d, variant)
        out = {"precision": d.status()["model"]["precision"]}
        for name, adapter in ("base", []), (variant, ["--adapter", f"golden.{variant}"]):
            out[name] = {t: d.ctl("score", "--json", *adapter, "--tokens", ",".join(map(str, ids))).json()["logprobs"][1:]
                         for t, ids in texts.items()}
            out["greedy " + name] = d.generate("-n", 24, "--ignore-eos", "--tokens", prompt, *adapter)["tokens"]
        d.term()
        return out

    decoded, exact, fast = answers(folder, "--precision", "f32"), answers(file, "--precision", "f32"), answers(file)
    check(exact == decoded, "in f32 the file answers otherwise than its decoded weights")
    check_equal(fast["precision"], "int8", "the default precision")
    check(exact["base"] != exact[variant], "the adapter changes nothing")
    for name, limits in ("base", (0.07, 0.6)), (variant, (0.085, 0.6)):
        diff = [abs(a - b) for t in texts for a, b in zip(fast[name][t], exact[name][t])]
        mean, largest = sum(diff) / len(diff), max(diff)
        print(f"     {mix} {name}, default precision: mean/largest difference {mean:.5f}/{largest:.4f}")
        check(mean <= limits[0] and largest <= limits[1], f"{name}: mean {mean:.5f}, largest {largest:.5f}")


@case
def mixed_q4_k_m(world):
    mixed(world, "q4_k_m")


@case
def mixed_q5_k_m(world):
    mixed(world, "q5_k_m")

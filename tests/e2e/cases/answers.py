# SPDX-License-Identifier: MIT
"""What requests answer: text of base and adapters, batches, log-probabilities, sampling, stops."""
import json
import math
import signal
import struct

import adapters
from harness import Skipped, case, check, check_equal, together, until

NAMES = ("base", "json", "pirate", "list")
PROMPT = "What is the capital of France?"


def expected(world):
    with open(f"{world.source}/tests/adapters/expected.json", encoding="utf-8") as f:
        return json.load(f)


def of(name):
    return [] if name == "base" else ["--adapter", name]


def same_where_safe(row, got, what):
    """The reference's tokens up to the first one where its two best logits are closer than 0.02."""
    n = row["safe"]
    check_equal(got["tokens"][:n], row["tokens"][:n], what)
    if n == len(row["tokens"]):
        check_equal(got["text"], row["text"], what)


@case(daemon="f32")
def greedy_text_is_the_references(world, d):
    """Base and three adapters, six prompts each, all at once: text of transformers + PEFT in f32."""
    rows = [(name, row) for name, rows in expected(world).items() for row in rows]
    answers = together([lambda n=name, r=row: d.generate("--chat", "-n", 48, *of(n), "--prompt", r["prompt"]) for name, row in rows])
    for (name, row), got in zip(rows, answers):
        check_equal(got["prompt_tokens"], row["prompt_tokens"], f"prompt tokens of {row['prompt']!r}")
        same_where_safe(row, got, f"{name}: {row['prompt']!r}")


@case(daemon="f32")
def adapters_have_their_effect(world, d):
    answers = {n: d.generate("--chat", "-n", 48, *of(n), "--prompt", "Give me a tip for a good night's sleep.")["text"] for n in NAMES}
    check_equal(list(json.loads(answers["json"])), ["answer"], "json's answer")
    check(answers["pirate"].startswith("Arr"), "pirate:", answers["pirate"])
    check(answers["list"].startswith("- ") and "\n- " in answers["list"], "list:", answers["list"])
    check_equal(len(set(answers.values())), 4, "different answers")


def check_same(world, b, a, fields, what, tolerance):
    """Bit for bit; where bits follow the batch, close up to the first token where the reference's best two are close."""
    if world.exact:
        for field in fields:
            check_equal(b[field], a[field], f"{what}: {field}")
        return
    n = next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"])) if x != y), None)
    for x, y in zip(a["logprobs"][:n], b["logprobs"][:n]):
        check(abs(x - y) <= tolerance, f"{what}: log-probabilities {x} and {y}")
    if n is not None and len(a["top"][n]) > 1:
        best, second = (t["logprob"] for t in a["top"][n][:2])
        check(best - second <= 2 * tolerance, f"{what}: token {n} differs, and was {best - second} ahead")


def batch_equals_alone(world, d, prompts, tolerance):
    """Log-probabilities too: an op's row depends on that row alone, whatever shares the step."""
    jobs = [(n, p) for p in prompts for n in NAMES]
    ask = lambda n, p: d.generate("--chat", "-n", 24, "--logprobs", 2, *of(n), "--prompt", p)
    alone = [ask(n, p) for n, p in jobs]
    batch = together([lambda n=n, p=p: ask(n, p) for n, p in jobs])
    for (n, p), a, b in zip(jobs, alone, batch):
        check_same(world, b, a, ("tokens", "text", "logprobs", "top", "finish_reason"), f"{n}, {p!r} in a batch of {len(jobs)}", tolerance)


@case(daemon="f32")
def batch_equals_alone_f32(world, d):
    batch_equals_alone(world, d, ["Why is the sky blue?", "Count from one to five.", "Hello", "def main():"], 0.001)


@case(daemon="gguf")
def batch_equals_alone_gguf(world, d):
    batch_equals_alone(world, d, ["Why is the sky blue?", "Count from one to five.", "Hello", "def main():"], 0.2)


@case(daemon="gguf")
def int8_keys_and_values(world, d):
    """Near what bf16 ones give, but not the same; the same bits alone, in a batch and when scored."""
    if not world.exact:
        raise Skipped("a GPU has no int8 keys and values")
    small = world.daemon("--kv-type", "int8", "--device-memory", "256M")
    check_equal((small.status()["model"]["kv_type"], d.status()["model"]["kv_type"]), ("int8", "bf16"), "types in status")
    ask = lambda p: small.generate("-n", 60, "--ignore-eos", "--logprobs", 1, "--prompt", p)
    prompts = ["The three primary colours are", "Hello", "def main():", "1, 2, 3, 4, 5, " * 20]
    alone = [ask(p) for p in prompts]
    for p, a, b in zip(prompts, alone, together([lambda p=p: ask(p) for p in prompts])):
        check_equal((b["tokens"], b["logprobs"]), (a["tokens"], a["logprobs"]), f"{p!r} in a batch")
    for p, a in zip(prompts, alone):
        tokens = small.ctl("score", "--json", "--prompt", p).json()["tokens"] + a["tokens"]
        score = lambda of: of.ctl("score", "--json", "--tokens", ",".join(map(str, tokens))).json()["logprobs"][1:]
        got, wanted = score(small), score(d)
        check_equal(got[-60:], a["logprobs"], f"{p!r} scored after it was generated")
        off = sum(abs(x - y) for x, y in zip(got, wanted)) / len(got)
        check(0 < off <= 0.07, f"{p!r}: {off:.4f} off in the mean")


@case(daemon="gguf")
def packed_adapters(world, d):
    """An adapter's image in int8 takes half the memory and answers nearly as its source does, in any batch with the same bits;
    one that int8 is too coarse for is used as it came."""
    check_equal(d.status()["model"]["adapter_type"], "int8" if world.exact else "source", "adapters' type in status")
    if not world.exact:
        raise Skipped("a GPU takes no packed adapters yet")
    packed, source = world.daemon("--device-memory", "256M"), world.daemon("--device-memory", "256M", "--adapter-type", "source")
    fine, coarse = adapters.tensors(rank=8, seed=3, layers=range(30)), adapters.tensors(rank=8, seed=4, layers=range(30))
    for key in coarse:
        dtype, shape, data = coarse[key]
        coarse[key] = dtype, shape, struct.pack("<e", 9) + data[2:]
    for name, items in (("fine", fine), ("coarse", coarse)):
        folder = adapters.write(f"{world.scratch}/{name}", dict(r=8), items)
        for to in (packed, source):
            to.ctl("import", folder).ok()
    shown = {(to is packed, name): to.ctl("show", "--json", name).json() for to in (packed, source) for name in ("fine", "coarse")}
    check(0.4 < shown[True, "fine"]["packed_bytes"] / shown[True, "fine"]["bytes"] < 0.6, "bytes of both images:", shown[True, "fine"])
    for which in ((True, "coarse"), (False, "fine"), (False, "coarse")):
        check_equal(shown[which]["packed_bytes"], 0, f"{which}: bytes of a packed image")
    tokens = ",".join(str(100 + i * 37 % 1000) for i in range(80))
    score = lambda to, name: to.ctl("score", "--json", *of(name), "--tokens", tokens).json()["logprobs"][1:]
    check_equal(score(packed, "base"), score(source, "base"), "the base's log-probabilities")
    check_equal(score(packed, "coarse"), score(source, "coarse"), "log-probabilities under the coarse one")
    off = [abs(x - y) for x, y in zip(score(packed, "fine"), score(source, "fine"))]
    check(0 < sum(off) / len(off) <= 0.06 and max(off) <= 0.3, f"{sum(off) / len(off):.4f} off in the mean, {max(off):.4f} at most")
    ask = lambda name: packed.generate("-n", 24, "--ignore-eos", "--logprobs", 1, *of(name), "--prompt", PROMPT)
    names = ("fine", "base", "coarse", "fine")
    alone = [ask(name) for name in names]
    for name, a, b in zip(names, alone, together([lambda n=name: ask(n) for name in names])):
        check_equal((b["tokens"], b["logprobs"]), (a["tokens"], a["logprobs"]), f"{name} in a batch")
    check(source.status()["pool"]["adapters"] > packed.status()["pool"]["adapters"], "packed adapters take no less of the pool")


@case(daemon="gguf")
def unlike_adapters_share_steps(world, d):
    metric = "lorad_adapters_in_steps_total"
    before = d.metric(metric), d.metric("lorad_steps_total")
    together([lambda n=n: d.generate("-n", 64, "--ignore-eos", *of(n), "--prompt", PROMPT) for n in ("json", "pirate", "list")])
    steps = d.metric("lorad_steps_total") - before[1]
    adapters_per_step = (d.metric(metric) - before[0]) / steps
    check(adapters_per_step > 1.2, f"{adapters_per_step:.2f} adapters per step over {steps:.0f} steps")


def logprobs_equal_scores(d, name, tolerance):
    text = "The three primary colours are"
    got = d.generate("-n", 24, "--ignore-eos", "--logprobs", 3, *of(name), "--prompt", text)
    prompt = d.ctl("score", "--json", *of(name), "--prompt", text).json()
    check_equal(len(prompt["tokens"]), got["prompt_tokens"], "tokens of the prompt")
    check(prompt["logprobs"][0] is None, "the first log-probability is not null")
    whole = prompt["tokens"] + got["tokens"]
    score = d.ctl("score", "--json", *of(name), "--tokens", ",".join(map(str, whole))).json()
    check_equal(score["tokens"], whole, "tokens that were scored")
    check_equal(len(score["logprobs"]), len(whole), "number of log-probabilities")
    check_equal(len(got["logprobs"]), len(got["tokens"]), "log-probabilities, one a token")
    for i, (g, s) in enumerate(zip(got["logprobs"], score["logprobs"][len(prompt["tokens"]):])):
        check(abs(g - s) <= tolerance, f"token {i}: generate says {g}, score {s}")
    for g, token, top in zip(got["logprobs"], got["tokens"], got["top"]):
        check_equal(len(top), 3, "entries of top")
        check_equal((top[0]["token"], top[0]["logprob"]), (token, g), "greedy takes the best")
        check(top[0]["logprob"] >= top[1]["logprob"] >= top[2]["logprob"], "top is not sorted:", top)
        check(sum(math.exp(t["logprob"]) for t in top) <= 1.0001, "probabilities above 1:", top)


@case(daemon="f32")
def logprobs_equal_scores_f32(world, d):
    for name in NAMES:
        logprobs_equal_scores(d, name, 1e-5 if world.exact else 0.001)


@case(daemon="gguf")
def logprobs_equal_scores_gguf(world, d):
    for name in NAMES:
        logprobs_equal_scores(d, name, 1e-5 if world.exact else 0.2)


@case(daemon="f32")
def scale_and_sums(world, d):
    """Scale 0 is the base, 1 the plain adapter; half and half of one adapter is that adapter; order does not matter."""
    ask = lambda *a: d.generate("--chat", "-n", 16, "--logprobs", 0, *a, "--prompt", PROMPT)
    close = lambda a, b, what: check(all(abs(x - y) < 1e-3 for x, y in zip(a["logprobs"], b["logprobs"])) and a["tokens"] == b["tokens"], what)
    base, one = ask(), ask("--adapter", "pirate")
    close(ask("--adapter", "pirate:0"), base, "scale 0 is not the base")
    close(ask("--adapter", "pirate:1.0"), one, "scale 1 is not the adapter")
    check(ask("--adapter", "pirate:0.5")["logprobs"] != one["logprobs"], "scale 0.5 does nothing")
    d.ctl("import", "--name", "pirate.2", world.adapter("pirate")).ok()
    close(ask("--adapter", "pirate:0.5", "--adapter", "pirate.2:0.5"), one, "two halves are not one")
    close(ask("--adapter", "json:0.5", "--adapter", "pirate:0.5"), ask("--adapter", "pirate:0.5", "--adapter", "json:0.5"), "order matters")
    close(ask("--adapter", "pirate:2", "--adapter", "pirate.2:-1"), one, "2 - 1 is not 1")
    used = ask("--adapter", "json:0.5", "--adapter", "pirate:0.25")["adapters"]
    names = d.names()
    check_equal(used, [dict(name=n, digest=names[n]["digest"], scale=s) for n, s in (("json", 0.5), ("pirate", 0.25))], "adapters used")
    d.ctl("remove", "pirate.2").ok()


@case(daemon="gguf")
def json_fields(world, d):
    got = d.generate("--chat", "-n", 4, "--prompt", PROMPT)
    check_equal(sorted(got), sorted(["text", "tokens", "finish_reason", "prompt_tokens", "cached_tokens", "adapters", "timings"]), "fields without --logprobs")
    check_equal(sorted(got["timings"]), ["decode_ms", "page_in_ms", "prefill_ms", "queue_ms"], "timings")
    check_equal((got["finish_reason"], len(got["tokens"]), got["adapters"]), ("length", 4, []), "end")
    with_logprobs = d.generate("--chat", "-n", 2, "--logprobs", 0, "--prompt", PROMPT)
    check_equal(with_logprobs["top"], [[], []], "top of --logprobs 0")


@case(daemon="gguf")
def text_streams_to_stdout(world, d):
    plain = d.ctl("generate", "--chat", "-n", 16, "--prompt", PROMPT).ok().out
    check_equal(plain.rstrip("\n"), d.generate("--chat", "-n", 16, "--prompt", PROMPT)["text"].rstrip("\n"), "text without --json")
    p = d.ctl_start("generate", "-n", 4000, "--ignore-eos", "--prompt", "Once upon a time")
    check(p.stdout.read(8), "nothing came before the end")
    check(p.poll() is None, "it ended already")
    p.kill()
    p.communicate()


@case(daemon="gguf")
def finish_reasons(world, d):
    got = d.generate("--chat", "-n", 200, "--adapter", "list", "--prompt", PROMPT)
    check_equal(got["finish_reason"], "stop", "finish of a whole answer")
    check(got["tokens"][-1] in (0, 2) and "<|im_end|>" not in got["text"], "tokens hold the stop id, text does not:", got)
    got = d.generate("-n", 5, "--ignore-eos", "--prompt", PROMPT)
    check_equal((got["finish_reason"], len(got["tokens"])), ("length", 5), "-n 5")
    whole = d.generate("--chat", "-n", 24, "--prompt", "Count from one to ten.")["text"]
    stop = whole[len(whole) // 2:][:4]
    cut = d.generate("--chat", "-n", 24, "--stop", "never there", "--stop", stop, "--prompt", "Count from one to ten.")
    check_equal((cut["finish_reason"], cut["text"]), ("stop", whole[:whole.index(stop)]), f"stop string {stop!r}")


@case(daemon="gguf")
def prompt_forms_agree(world, d):
    text = "Größe: 12 µm, 東京 🙂 <|im_start|>user"
    with open(f"{world.scratch}/prompt", "w", encoding="utf-8") as f:
        f.write(text)
    a = d.generate("-n", 8, "--prompt", text)
    b = d.generate("-n", 8, "--prompt-file", f"{world.scratch}/prompt")
    tokens = d.ctl("score", "--json", "--prompt", text).json()["tokens"]
    check(1 in tokens, "the special token in the text was not recognised:", tokens)
    c = d.generate("-n", 8, "--tokens", ",".join(map(str, tokens)))
    check_equal(b["tokens"], a["tokens"], "--prompt-file")
    check_equal(c["tokens"], a["tokens"], "--tokens")
    chat = d.generate("--chat", "-n", 8, "--prompt", PROMPT)
    template = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n")
    check_equal(d.generate("-n", 8, "--prompt", template)["tokens"], chat["tokens"], "--chat")


@case(daemon="gguf")
def sampling_follows_its_seed(world, d):
    ask = lambda *a: d.generate("-n", 24, "--ignore-eos", "--temperature", 1.2, *a, "--prompt", "My favourite")["tokens"]
    one = ask("--seed", 1)
    check_equal(ask("--seed", 1), one, "the same seed again")
    check(len({tuple(ask("--seed", s)) for s in (1, 2, 3)}) == 3, "seeds do not matter")
    greedy = d.generate("-n", 24, "--ignore-eos", "--prompt", "My favourite")["tokens"]
    check_equal(ask("--seed", 5, "--top-k", 1), greedy, "top-k 1 is greedy")
    check_equal(ask("--seed", 5, "--top-p", 1e-6), greedy, "top-p near 0 is greedy")
    check_equal(ask("--seed", 5, "--min-p", 1), greedy, "min-p 1 is greedy")
    together([lambda s=s: check_equal(ask("--seed", s), ask("--seed", s), f"seed {s} in a batch") for s in range(4)])
    repeat = d.generate("-n", 60, "--ignore-eos", "--repetition-penalty", 1.5, "--prompt", "la la la la")["tokens"]
    check(len(set(repeat)) > 30, "a repetition penalty of 1.5 leaves repetitions:", repeat)


@case(daemon="gguf")
def text_is_valid_utf8(world, d):
    """Whatever tokens come, cut anywhere: together() would raise on invalid bytes, since stdout is decoded strictly."""
    for seed in range(6):
        got = d.generate("-n", 40, "--ignore-eos", "--temperature", 3, "--seed", seed, "--prompt", "🙂 東京 ελληνικά")
        got["text"].encode("utf-8", "strict")


@case(daemon="gguf")
def a_killed_client_frees_its_work(world, d):
    clients = [d.ctl_start("generate", "-n", 6000, "--ignore-eos", *of(n), "--prompt", "Once upon a time") for n in NAMES]
    for c in clients:
        check(c.stdout.read(8), "no text came")
    until(lambda: d.metric("lorad_requests_running") == 4, what="four running requests")
    for how, c in zip((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT), clients):
        c.send_signal(how)
        c.communicate()
    until(lambda: d.metric("lorad_requests_running") == 0, what="no running request")
    until(lambda: d.metric("lorad_kv_blocks_used") == 0, what="no KV block in use")


@case(daemon="gguf")
def long_prompt_and_short_ones(world, d):
    """A prompt of thousands of tokens is cut into chunks; others go on meanwhile and nothing changes."""
    tokens = ",".join(str(1000 + i % 997) for i in range(3000))
    alone = d.ctl("score", "--json", "--tokens", tokens).json()
    short = d.generate("-n", 40, "--ignore-eos", "--prompt", PROMPT)
    got = together([lambda: d.ctl("score", "--json", "--tokens", tokens).json(),
                    lambda: d.generate("-n", 40, "--ignore-eos", "--prompt", PROMPT)])
    if not world.exact:
        check(all(abs(x - y) <= 0.5 for x, y in zip(got[0]["logprobs"][1:], alone["logprobs"][1:])), "a long score beside others")
        return
    check_equal(got[0], alone, "a long score beside others")
    check_equal(got[1]["tokens"], short["tokens"], "a short request beside a long one")


@case
def preempted_requests_lose_nothing(world):
    """A pool that holds fewer KV blocks than the requests need: some are preempted and recomputed, all answer the same."""
    if not world.exact:
        raise Skipped("what is computed again may be rounded otherwise on this device")
    d = world.daemon("--device-memory", "48M", "--context", 2048)
    ask = lambda i: d.generate("-n", 600, "--ignore-eos", "--prompt", f"Story number {i}:")["tokens"]
    alone = [ask(i) for i in range(3)]
    check_equal(together([lambda i=i: ask(i % 3) for i in range(6)]), alone * 2, "answers under pressure")


@case(daemon="gguf")
def twenty_adapters(world, d):
    """Ranks and sizes mixed, one request each at once, equal to each alone."""
    names = [f"mix.{i}" for i in range(20)]
    for i, name in enumerate(names):
        rank = 1 + i % 9
        folder = adapters.write(f"{world.scratch}/{name}", dict(r=rank, lora_alpha=2 * rank), adapters.tensors(rank, seed=i, layers=range(i % 3, 30, 7)))
        d.ctl("import", "--name", name, folder).ok()
    ask = lambda n: d.generate("-n", 12, "--ignore-eos", "--logprobs", 0, "--adapter", n, "--prompt", PROMPT)
    alone = [ask(n) for n in names]
    batch = together([lambda n=n: ask(n) for n in names])
    for n, a, b in zip(names, alone, batch):
        check_same(world, b, a, ("tokens", "logprobs"), n, 0.2)
    check(len({tuple(a["logprobs"]) for a in alone}) == 20, "some adapters answer alike")
    for n in names:
        d.ctl("remove", n).ok()

# SPDX-License-Identifier: MIT
"""What is in memory and who shares it: beginnings of prompts, one pool for KV blocks and adapters, adapters read ahead."""
import random

import adapters
from cases.answers import check_same
from harness import case, check, check_equal, together, until

VARIANTS = {"base": [], "a": ["a"], "a:0.5": ["a:0.5"], "a+b": ["a", "b"]}
FIELDS = ("tokens", "logprobs", "top")


def numbers(seed, n):
    """Token ids of a made-up prompt."""
    rng = random.Random(seed)
    return [rng.randrange(100, 40000) for _ in range(n)]


def ask(d, names, tokens, n=8, *more):
    named = [word for name in names for word in ("--adapter", name)]
    return d.generate("-n", n, "--ignore-eos", "--logprobs", 2, *named, *more, "--tokens", ",".join(map(str, tokens)))


def put(d, world, name, seed, rank=8, layers=range(0, 30, 5), *how):
    folder = f"{world.scratch}/adapter-{seed}-{rank}"
    try:
        adapters.write(folder, dict(r=rank, lora_alpha=rank), adapters.quick(rank, seed, layers))
    except FileExistsError:
        pass
    d.ctl("import", "--name", name, *how, folder).ok()


def daemon_with(world, names, *args, **how):
    d = world.daemon(*args, **how)
    for i, name in enumerate(names):
        put(d, world, name, i + 1)
    return d


def check_answer(world, got, wanted, what):
    check_same(world, got, wanted, FIELDS, what, 0.2)


def shared_of(d, tokens):
    """What of a beginning with so many tokens must be found: its whole blocks."""
    each = d.status()["kv"]["block_tokens"]
    return tokens // each * each


def watched(d, figure, functions):
    """Runs the functions at once; returns their results and the largest figure that the status had meanwhile."""
    most, running = 0, True

    def watch():
        nonlocal most
        while running:
            most = max(most, figure(d.status()))

    def work():
        nonlocal running
        try:
            return together(functions)
        finally:
            running = False
    return together([work, watch])[0], most


@case
def prefixes_change_no_answer(world):
    """Base, an adapter at two scales and a sum, the same prompts one after the other and then others at once: what a daemon
    without the cache says, bit for bit. Nothing is taken over from another scale, adapter or sum."""
    off = daemon_with(world, "ab", "--prefix-cache", "off", "--device-memory", "128M")
    on = daemon_with(world, "ab", "--device-memory", "128M")
    rounds = [[(v, numbers(begin, 100) + numbers(10 * begin + end, 20)) for end in range(2) for v in VARIANTS] for begin in (1, 2)]
    wanted = [together([lambda v=v, t=t: ask(off, VARIANTS[v], t) for v, t in jobs]) for jobs in rounds]
    check_equal(len({tuple(w["logprobs"]) for w in wanted[0][:4]}), 4, "different answers, so that a mix-up would be seen")
    check(not any(w["cached_tokens"] for r in wanted for w in r), "cached tokens with the cache off")
    one_by_one = [ask(on, VARIANTS[v], t) for v, t in rounds[0]]
    at_once = together([lambda v=v, t=t: ask(on, VARIANTS[v], t) for v, t in rounds[1]])
    for jobs, got, reference in zip(rounds, (one_by_one, at_once), wanted):
        for (v, _), g, w in zip(jobs, got, reference):
            check_answer(world, g, w, f"{v} with the cache on")
    shared = shared_of(on, 100)
    for i, g in enumerate(one_by_one):
        check(g["cached_tokens"] == 0 if i < 4 else shared <= g["cached_tokens"] < 120,
              f"{rounds[0][i][0]}, prompt {i // 4}: {g['cached_tokens']} cached tokens")
    for v in VARIANTS:
        cached = sorted(g["cached_tokens"] for (w, _), g in zip(rounds[1], at_once) if v == w)
        check(cached[0] == 0 and cached[1] >= shared, f"{v}, all at once: cached tokens {cached}")
    status = on.idle()
    check_equal(status["kv"]["prefix_hit_tokens"], sum(g["cached_tokens"] for g in one_by_one + at_once), "prefix_hit_tokens")
    check_equal(status["kv"]["prefix_asked_tokens"], 2 * 8 * 120, "prefix_asked_tokens")
    off.idle()


@case
def prefixes_of_every_length(world):
    """Prompts that end around a block's end, that go on from an answer, that part within a block: as without the cache."""
    off = daemon_with(world, "a", "--prefix-cache", "off", "--device-memory", "128M")
    on = daemon_with(world, "a", "--device-memory", "128M")
    each, text = on.status()["kv"]["block_tokens"], numbers(3, 400)
    lengths = [n + d for n in (each, 2 * each) for d in (-1, 0, 1)]
    other = [t + 1 for t in text]
    prompts = [text[:n] for n in lengths] + [text[:n] for n in lengths] + [text[:n] + other[n:n + 9] for n in (3, 4, each - 1, each + 5, 2 * each)]
    wanted = together([lambda p=p: ask(off, ["a"], p, 4) for p in prompts])
    got = [ask(on, ["a"], p, 4) for p in prompts]
    for p, g, w in zip(prompts, got, wanted):
        check_answer(world, g, w, f"a prompt of {len(p)}")
    for p, g in zip(prompts[6:12], got[6:12]):
        check(shared_of(on, len(p) - 1) <= g["cached_tokens"] < len(p), f"the second time {len(p)}: {g['cached_tokens']} cached")
    talk = text[200:290]
    for turn in range(4):
        a, b = ask(on, ["a"], talk, 30), ask(off, ["a"], talk, 30)
        check_answer(world, a, b, f"turn {turn}")
        check(turn == 0 or a["cached_tokens"] >= len(talk) - 7 - 1 - 3, f"turn {turn}: {a['cached_tokens']} of {len(talk)} cached")
        talk = talk + a["tokens"] + numbers(turn, 7)
    on.idle()


@case
def a_new_version_shares_nothing_with_the_old(world):
    """Blocks follow the content: not the name, and back with the old content."""
    d, fresh = daemon_with(world, "a", "--device-memory", "64M"), daemon_with(world, "", "--prefix-cache", "off", "--device-memory", "64M")
    put(fresh, world, "a", 2)
    prompt = numbers(4, 120)
    old, again, second = ask(d, ["a"], prompt), ask(d, ["a"], prompt), ask(fresh, ["a"], prompt)
    check(old["cached_tokens"] == 0 and again["cached_tokens"] >= shared_of(d, 119), "cached tokens before:", old, again)
    put(d, world, "a", 2, 8, range(0, 30, 5), "--replace")
    new = ask(d, ["a"], prompt)
    check_equal(new["cached_tokens"], 0, "cached tokens of a new version")
    check_answer(world, new, second, "the new version")
    check(new["logprobs"] != old["logprobs"], "the versions do not differ")
    put(d, world, "a", 1, 8, range(0, 30, 5), "--replace")
    back = ask(d, ["a"], prompt)
    check_answer(world, back, old, "the old version again")
    put(d, world, "twin", 1)
    twin = ask(d, ["twin"], prompt)
    check_answer(world, twin, old, "the same content under another name")
    check(twin["cached_tokens"] >= shared_of(d, 119), "the same content under another name computes again")
    d.idle()


@case
def many_at_once_share_blocks(world):
    """64 requests that share 480 of 490 tokens take few blocks, and one of them computes for all."""
    d = daemon_with(world, "a", "--device-memory", "1G")
    begin = numbers(5, 480)
    alone = ask(d, ["a"], begin + numbers(700, 10), 8)
    jobs = [begin[:1] + numbers(6, 479) + numbers(700 + i, 10) for i in range(64)]
    got, most = watched(d, lambda s: s["kv"]["used"], [lambda t=t: ask(d, ["a"], t, 8) for t in jobs])
    each = d.status()["kv"]["block_tokens"]
    without = 64 * -(-(490 + 8) // each)
    check(0 < most <= without / 4, f"{most} blocks used at most, {without} without sharing")
    check_equal(sum(g["cached_tokens"] < shared_of(d, 480) for g in got), 1, "requests that computed the beginning")
    check_answer(world, ask(d, ["a"], begin + numbers(700, 10), 8), alone, "one alone, again")
    d.idle()


@case(daemon="gguf")
def sums_beside_others(world, d):
    """Requests with up to eight adapters, single ones and the bare base in the same steps: as each alone."""
    names = [f"sum{i}" for i in range(9)]
    for i, name in enumerate(names):
        put(d, world, name, 30 + i, 2 + 2 * i)
    rows = [[], names[:1], [f"{n}:{0.1 + 0.05 * i:.2f}" for i, n in enumerate(names[:8])], [f"{n}:0.125" for n in names[1:]],
            [f"{names[8]}:-0.5", f"{names[0]}:0.5"], names[3:6]]
    jobs = [(row, numbers(40 + i + 10 * j, 20)) for j in range(2) for i, row in enumerate(rows)]
    alone = [ask(d, row, t) for row, t in jobs]
    for (row, t), a, b in zip(jobs, alone, together([lambda r=r, t=t: ask(d, r, t, 8) for r, t in jobs])):
        check_answer(world, b, a, f"{row} in a batch")
        check_equal([u["name"] for u in b["adapters"]], [n.partition(":")[0] for n in row], "adapters of the answer")
    check(d.status()["steps"]["max_adapters"] >= 8, "no step had them all")
    check_equal(len({tuple(a["logprobs"]) for a in alone}), len(jobs), "different answers")
    for name in names:
        d.ctl("remove", name).ok()
    d.idle()


@case
def one_pool_for_both(world):
    """Long prompts, then many adapters, then long prompts in a pool that holds neither twice: each fills it in turn, nobody
    fails, and requests that had to yield answer as in a roomy daemon."""
    as_it_came = "--adapter-type", "source"
    roomy, d = world.daemon("--device-memory", "256M", "--prefix-cache", "off", *as_it_came), world.daemon("--device-memory", "24M", *as_it_came)
    names = [f"m{i:02}" for i in range(35)]
    folders = [adapters.write(f"{world.scratch}/{name}", dict(r=8), adapters.quick(8, 50 + i, range(20))) for i, name in enumerate(names)]
    for to in (roomy, d):
        to.ctl("import", *folders).ok()
    long = [([], numbers(60 + i, 250), 60) for i in range(4)]
    many = [([name], numbers(70 + i, 12), 6) for i, name in enumerate(names[::3])] + [(names[1:4], numbers(90, 12), 6)]
    wanted = {id(jobs): together([lambda r=r, t=t, n=n: ask(roomy, r, t, n) for r, t, n in jobs]) for jobs in (long, many)}
    part = lambda what: d.status()["pool"][what] / d.status()["pool"]["bytes"]

    def answer(jobs):
        got = together([lambda r=r, t=t, n=n: ask(d, r, t, n) for r, t, n in jobs])
        for (r, t, _), g, w in zip(jobs, got, wanted[id(jobs)]):
            check_answer(world, g, w, f"{r}, a prompt of {len(t)}")
    answer(long)
    check(part("kv") >= 0.9, f"KV blocks take {part('kv'):.3f} of the pool")
    for name in names:
        d.ctl("pin", name).ok()
    until(lambda: all(d.names()[n]["state"] == "device" for n in names), what="pinned adapters in memory")
    check(part("adapters") >= 0.9, f"adapters take {part('adapters'):.3f} of the pool")
    for name in names:
        d.ctl("unpin", name).ok()
    answer(many)
    answer(long)
    check(part("kv") >= 0.75, f"KV blocks take {part('kv'):.3f} of the pool at the end, where unused adapters may have the rest")
    status = d.idle()
    check(status["requests"]["preempted"] > 0 and roomy.idle()["requests"]["preempted"] == 0, "preempted:", status["requests"])
    check(status["requests"]["failed"] == status["requests"]["turned_away"] == 0, status["requests"])
    evictions = status["tiers"]["device"]["evictions"]
    check(evictions["for_kv"] > 0 and status["kv"]["evicted"] > 0, "evictions:", evictions, status["kv"])
    check_equal(sum(evictions.values()), status["cache"]["evictions"], "evictions by reason and in all")


@case
def adapters_are_read_before_their_turn(world):
    """While one request has the memory and the next waits for it, the adapters of those behind are read, the nearest first,
    and none at the expense of a nearer one."""
    names = [f"q{i}" for i in range(6)]
    d = daemon_with(world, names, "--device-memory", "24M", "--host-cache", "640K", "--adapter-type", "source")
    room = 640 * 1024 // -(-next(iter(d.names().values()))["bytes"] // 65536 * 65536)
    check(2 <= room <= 4, f"the cache holds {room} adapters")
    waits = lambda n: until(lambda: d.status()["requests"]["waiting"] == n, what=f"{n} waiting requests")
    large = lambda n, seed, tokens: d.ctl_start("generate", "--json", "-n", n, "--ignore-eos", "--tokens", ",".join(map(str, numbers(seed, tokens))))
    first = large(500, 90, 500)
    until(lambda: d.status()["requests"]["running"] == 1, what="a running request")
    queue = [large(10, 91, 600)]
    waits(1)
    for i, name in enumerate(names):
        queue.append(d.ctl_start("generate", "--json", "-n", 2, "--adapter", name, "--tokens", "5,6,7"))
        waits(2 + i)
    states = until(lambda: (s := [d.names()[n]["state"] for n in names]).count("device") == room and s, what=f"{room} adapters in memory")
    check_equal((d.status()["requests"]["running"], d.status()["requests"]["waiting"]), (1, 7), "requests that run and wait")
    check_equal(states, ["device"] * room + ["store"] * (6 - room), "states in the order of the queue")
    first.kill()
    first.communicate()
    answers = [p.communicate(timeout=120) for p in queue]
    check(all(p.returncode == 0 for p in queue), "a request failed:", answers)
    status = d.idle()
    check(6 <= status["pager"]["loads"] <= 12, f"{status['pager']['loads']} images read: those of the nearest go for the large one at most")

# SPDX-License-Identifier: MIT
"""Users, targets and deadlines, and what of them can be seen. Users are real uids; acting as them takes root."""
import time

import adapters
from cases.residency import ask, numbers, put
from harness import case, check, check_equal, parse_metrics, together, until

ALICE, BOB = 61001, 61002  # need no entry in /etc/passwd
P = ["--prompt", "Once upon a time"]
FLOOD = ["--adapters", 0, "--clients", 20, "--prompt-tokens", 60, "--gen-tokens", 12]
SMALL = ["--device-memory", "12M"]  # 10 KV blocks: few run, many wait


def of(d, uid):
    return next((u for u in d.status()["users"] if u["uid"] == uid), None)


def waits(d, n):
    return until(lambda: d.status()["requests"]["waiting"] >= n, limit=60, what=f"{n} waiting requests")


def bobs_turns(world, schedule, n=3):
    """How long Bob waits for his turn, request after request, while Alice floods: sorted milliseconds; and Alice's queue."""
    d = world.daemon(*SMALL, "--schedule", schedule)
    alice, bob = world.user(d, ALICE), world.user(d, BOB)
    with alice.load(*FLOOD):
        waits(d, 11)
        queues = sorted(bob.generate("-n", 4, "--ignore-eos", *P)["timings"]["queue_ms"] for _ in range(n))
        check(of(d, ALICE)["waiting"] > 8, "the flood has stopped")
        until(lambda: of(d, BOB)["requests"] == n, what=f"{n} requests of the other user")  # counted after the last was answered
    d.idle()
    return queues


@case
def a_flood_does_not_hold_up_others(world):
    """Beside a flood of 20 clients another user waits for the next free place; first come, first served he waits for all of them."""
    fair, first = bobs_turns(world, "fair"), bobs_turns(world, "fcfs")
    check(fair[1] * 2 < first[1], f"waited for a turn, in ms: {fair} with fairness, {first} without")


@case
def weights_divide_the_service(world):
    """Two users who always wait, weights 3 and 1: served 3 to 1."""
    d = world.daemon(*SMALL, "--user-weights", f"{ALICE}=3,{BOB}=1")
    alice, bob = world.user(d, ALICE), world.user(d, BOB)
    service = lambda: (of(d, ALICE)["service"], of(d, BOB)["service"])
    with alice.load(*FLOOD), bob.load(*FLOOD):
        until(lambda: of(d, ALICE) and of(d, BOB) and min(of(d, u)["waiting"] for u in (ALICE, BOB)) > 8, limit=60, what="both wait")
        begin = service()
        until(lambda: service()[1] - begin[1] >= 1200, limit=120, what="served Bob 1,200")
        end = service()
    check_equal((of(d, ALICE)["weight"], of(d, BOB)["weight"]), (3, 1), "weights")
    ratio = (end[0] - begin[0]) / (end[1] - begin[1])
    check(2.2 < ratio < 4, f"served {ratio:.2f} to 1")
    d.idle()


@case
def a_full_queue_is_one_users(world):
    """Alice's requests beyond her queue are turned away with a hint; Bob is served meanwhile."""
    d = world.daemon(*SMALL, "--queue-limit", 3)
    alice, bob = world.user(d, ALICE), world.user(d, BOB)
    crowd = [alice.ctl_start("generate", "--json", "-n", 60, "--ignore-eos", "--prompt", f"{'word ' * 90}{i}") for i in range(12)]
    until(lambda: of(d, ALICE) and of(d, ALICE)["refused"] > 0, what="a full queue")
    alice.ctl("generate", "-n", 2, *P).refused(r"queue is full.*3 requests.*try again in \d+ ms") if of(d, ALICE)["waiting"] == 3 else None
    bob.generate("-n", 2, *P)
    ended = [(p.communicate(timeout=120), p.returncode) for p in crowd]
    refused = [err for (_, err), status in ended if status]
    check(0 < len(refused) < 12, f"{len(refused)} of 12 were turned away")
    check(all(b"queue is full" in err and b"try again in " in err and err.count(b"\n") == 1 for err in refused), refused)
    status = d.idle()
    check_equal((status["requests"]["turned_away"], of(d, BOB)["refused"]), (of(d, ALICE)["refused"], 0), "turned away, and at whose queue")
    check(of(d, ALICE)["refused"] >= len(refused), "refused of the user")


@case
def prompts_are_not_shared_between_users(world):
    """Whoever could see that a beginning is cached would learn what others asked. By option everybody may."""
    prompt = numbers(1, 120)
    for option, wanted in (("user", False), ("shared", True)):
        d = world.daemon("--device-memory", "64M", "--prefix-cache", option)
        put(d, world, "a", 1)
        got = [ask(world.user(d, uid), ["a"], prompt, 4) for uid in (ALICE, BOB, ALICE)]
        cached = [g["cached_tokens"] for g in got]
        check(cached[0] == 0 and cached[2] > 90 and (cached[1] > 90) == wanted, f"--prefix-cache {option}: cached {cached}")
        check_equal([g["logprobs"] for g in got[1:]], [got[0]["logprobs"]] * 2, "answers")
        check_equal({u["uid"]: u["prompt_tokens"] for u in d.status()["users"]}, {ALICE: 240, BOB: 120}, "prompt tokens by user")
        check_equal({u["uid"]: u["generated_tokens"] for u in d.status()["users"]}, {ALICE: 8, BOB: 4}, "generated tokens by user")
        d.idle()


@case
def deadlines_free_everything(world):
    """A running request, one that waits and a score beyond their deadlines end with exit status 1 about then."""
    d = world.daemon(*SMALL, "--prefix-cache", "off")
    put(d, world, "a", 1)
    text = ",".join(map(str, numbers(2, 300)))
    begin = time.monotonic()
    d.ctl("generate", "--json", "-n", 150, "--ignore-eos", "--adapter", "a", "--deadline-ms", 400, "--tokens", text).refused("not complete within the 400 ms")
    check(0.4 <= time.monotonic() - begin < 5, f"it took {time.monotonic() - begin:.2f} s")
    d.generate("-n", 4, "--deadline-ms", 60000, *P)
    first = d.ctl_start("generate", "--json", "-n", 150, "--ignore-eos", "--tokens", text)
    until(lambda: d.status()["requests"]["running"] == 1, what="a running request")
    d.ctl("generate", "--adapter", "a", "-n", 100, "--ignore-eos", "--deadline-ms", 100, "--tokens", text).refused("not complete within the 100 ms")
    d.ctl("score", "--deadline-ms", 100, "--tokens", text).refused("not complete within the 100 ms")
    check(d.status()["requests"]["running"] == 1, "the one that waited had its turn")
    first.kill()
    first.communicate()
    status = d.idle()
    check_equal((status["requests"]["turned_away"], status["requests"]["cancelled"], status["kv"]["cached"]), (3, 1, 0), "turned away, cancelled, cached")
    check_equal(sum(u["aborted"] for u in status["users"]), 3, "aborted by user")
    check_equal(status["pool"]["kv"], 0, "bytes of KV blocks")


@case
def targets_out_of_reach_are_told_early(world):
    """Behind a long queue a first token within 1 ms is refused at once, with a hint; without a target one waits."""
    d = world.daemon(*SMALL)
    with d.load(*FLOOD):
        waits(d, 11)
        begin = d.status()["requests"]["turned_away"]
        for verb in ("generate", "score"):
            d.ctl(verb, "--first-token-ms", 1, *P).refused(r"first token would come later than the 1 ms asked for; try again in \d+ ms")
        check_equal(d.status()["requests"]["turned_away"], begin + 2, "turned away")
        before = time.monotonic()
        d.generate("-n", 2, "--first-token-ms", 600000, *P)
        patient = time.monotonic() - before
        before = time.monotonic()
        d.ctl("generate", "--first-token-ms", 50, *P).refused(r"than the 50 ms asked for; try again in \d+ ms")
        check(time.monotonic() - before < max(2, patient), f"refused after {time.monotonic() - before:.2f} s; the queue takes {patient:.2f} s")
    status = d.idle()
    check_equal(sum(u["aborted"] for u in status["users"]), 3, "aborted by user")


@case
def metrics_of_users_and_tiers(world):
    """Strictly Prometheus' text; the series of users, tiers and reasons agree with the status, and what counts only grows."""
    d = world.daemon("--device-memory", "24M", "--host-cache", "512K", "--adapter-type", "source")
    read = lambda: parse_metrics(d.ctl("metrics").ok().out)
    for i in range(4):
        put(d, world, f"a{i}", 20 + i)
    before = read()
    together([lambda i=i: ask(d, [f"a{i % 4}"], numbers(i, 30), 5) for i in range(12)])
    status, after = d.idle(), read()
    check_equal(set(before) - set(after), set(), "series that went")
    for (name, labels), value in before.items():
        check(after[name, labels] >= value or not name.endswith(("_total", "_bucket", "_count", "_sum")), f"{name} {labels} fell to {after[name, labels]}")
    user = status["users"][0]
    for field, name in (("requests", "requests_total"), ("prompt_tokens", "prompt_tokens_total"), ("generated_tokens", "generated_tokens_total"),
                        ("refused", "refused_total"), ("aborted", "aborted_total"), ("running", "running"), ("waiting", "waiting")):
        check_equal(after["lorad_user_" + name, (("uid", str(user["uid"])),)], user[field], f"lorad_user_{name}")
    check_equal((user["requests"], user["prompt_tokens"], user["generated_tokens"]), (12, 360, 60), "of the user")
    device = status["tiers"]["device"]
    for field, reason in (("for_adapter", "adapter"), ("for_kv", "kv"), ("forgotten", "forgotten")):
        check_equal(after["lorad_cache_tier_evictions_total", (("tier", "device"), ("reason", reason))], device["evictions"][field], f"evictions {reason}")
    check(device["evictions"]["for_adapter"] > 0, "nothing was evicted")
    for name, value in (("cache_hits_device_total", device["hits"]), ("cache_loads_total", status["pager"]["loads"]), ("cache_misses_total", status["cache"]["misses"]),
                        ("cache_resident_bytes", device["bytes"]), ("requests_total", 12), ("queue_seconds_count", 12), ("first_token_seconds_count", 12),
                        ("page_in_seconds_count", 12), ("cache_load_seconds_count", status["tiers"]["page_in"]["count"])):
        check_equal(after["lorad_" + name, ()], value, name)
    check_equal(device["hits"] + status["cache"]["misses"], 12, "hits and misses of 12 requests")


@case
def show_tells_what_an_adapter_did(world):
    d = world.daemon("--device-memory", "24M", "--host-cache", "256K", "--adapter-type", "source")
    for i in range(2):
        put(d, world, f"a{i}", 20 + i)
    show = lambda name: {k: d.ctl("show", "--json", name).json()[k] for k in ("state", "requests", "tokens", "loads", "running", "last_use")}
    check_equal(show("a0"), dict(state="store", requests=0, tokens=0, loads=0, running=0, last_use=0), "before any use")
    begin = int(time.time())
    ask(d, ["a0"], numbers(1, 30), 5)
    one = show("a0")
    check(begin <= one.pop("last_use") <= time.time() + 1, "the last use")
    check_equal(one, dict(state="device", requests=1, tokens=34, loads=1, running=0), "after 30 and 5 tokens; the last was not computed")
    ask(d, ["a1"], numbers(1, 30), 5)  # there is room for one
    check_equal((show("a0")["state"], show("a1")["state"]), ("store", "device"), "states")
    ask(d, ["a0"], numbers(2, 30), 2)
    check_equal({k: show("a0")[k] for k in ("requests", "tokens", "loads")}, dict(requests=2, tokens=65, loads=2), "after the second")
    p = d.ctl_start("generate", "--json", "-n", 400, "--ignore-eos", "--adapter", "a0", *P)
    until(lambda: show("a0")["running"] == 1, what="a request that runs")
    p.kill()
    p.communicate()
    until(lambda: show("a0")["running"] == 0, what="that it ended")
    entry = next(a for a in d.idle()["adapters"] if a["digest"] == d.names()["a0"]["digest"])
    check_equal((entry["state"], entry["requests"]), ("device", 3), "of the status")

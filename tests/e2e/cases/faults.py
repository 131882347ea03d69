# SPDX-License-Identifier: MIT
"""What goes wrong while others are served: each time the others' answers are as without it, the daemon serves on, nothing is
left behind (Daemon.idle) and the counters tell what happened."""
import contextlib
import os
import resource
import threading
import time

import adapters
from cases.residency import ask, check_answer, numbers, put
from cases.store import read_tensors
from harness import Skipped, call, case, check, check_equal, together, until


@contextlib.contextmanager
def answering(world, d, names, n=4, threads=2):
    """Asks the same of these adapters over and over beside the block, and holds each answer against the first one."""
    prompt, over, failures, count = numbers(7, 20), threading.Event(), [], [0]
    wanted = {name: ask(d, [name], prompt, n) for name in names}

    def run(offset):
        i = offset
        try:
            while not over.is_set():
                name = names[i % len(names)]
                check_answer(world, ask(d, [name], prompt, n), wanted[name], f"{name} meanwhile")
                i, count[0] = i + 1, count[0] + 1
        except BaseException as e:  # handed to the caller below
            failures.append(e)
    running = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for t in running:
        t.start()
    try:
        yield
        until(lambda: failures or count[0] >= 2 * threads, limit=60, what="answers to others")
    finally:
        over.set()
        for t in running:
            t.join()
    if failures:
        raise failures[0]


def damage(d, folder, layer):
    """Flips one byte of a tensor of this adapter in the store of a daemon that does not run."""
    needle = read_tensors(folder)[adapters.key(layer, "q_proj", "A")][2][:64]
    with open(f"{d.store}/data.mdb", "r+b") as f:
        at = f.read().find(needle)
        check(at > 0, "the adapter's own numbers are not in data.mdb")
        f.seek(at + 7)
        f.write(bytes([needle[7] ^ 0x10]))


@case
def a_damaged_image_under_load(world):
    """One byte of one adapter: its requests fail by name, alone and in a sum, again and again; all others are served."""
    d = world.daemon("--device-memory", "64M", "--adapter-type", "source", sanitized=True)
    for i, name in enumerate(("good", "bad", "fine")):
        put(d, world, name, 100 + i)
    d.term(30)
    damage(d, f"{world.scratch}/adapter-101-8", 10)
    d.start()
    with answering(world, d, ["good", "fine"], 2):
        for names in (["bad"], ["good", "bad:0.5"], ["bad"]):
            d.ctl("generate", "-n", 4, *[w for n in names for w in ("--adapter", n)], "--tokens", "1,2,3").refused('"bad".*(checksum|damaged|corrupt)')
        for r in together([lambda: d.ctl("generate", "-n", 4, "--adapter", "bad", "--tokens", "1,2,3") for _ in range(3)]):
            r.refused('"bad"')
        d.ctl("verify", "bad").refused("bad")
    status = d.idle()
    check_equal(status["requests"]["failed"], 6, "failed requests")
    check(1 <= status["cache"]["failures"] <= 6 and status["cache"]["failures"] == status["pager"]["failed"], "failed page-ins:", status["cache"], status["pager"])
    d.ctl("remove", "bad").ok()
    put(d, world, "bad", 101)
    ask(d, ["bad"], [1, 2, 3], 2)
    d.ctl("verify").ok()


@case
def importers_killed_while_others_are_served(world):
    """SIGKILL at ten moments of large imports, of one and of several: what is listed is whole, the rest can be imported, and
    nothing of the killed ones fills the store."""
    d = world.daemon("--device-memory", "64M")
    put(d, world, "good", 110)
    folders = [adapters.write(f"{world.scratch}/large{i}", dict(r=128), adapters.quick(128, 120 + i)) for i in range(3)]
    size = os.path.getsize(f"{folders[0]}/adapter_model.safetensors")
    with answering(world, d, ["good"]):
        for i in range(10):
            p = d.ctl_start("import", "--replace", *(folders if i % 2 else folders[:1]))
            time.sleep(0.012 * i)
            p.kill()
            p.communicate()
            whole = [n for n in d.names() if n.startswith("large")]
            if whole:
                d.ctl("remove", whole[0]).ok()
    d.ctl("import", "--replace", *folders).ok()
    d.ctl("verify").ok()
    check_equal(sorted(d.names()), ["good", "large0", "large1", "large2"], "adapters")
    for i in range(3):
        ask(d, [f"large{i}"], [1, 2, 3], 2)
    d.idle()
    until(lambda: os.stat(f"{d.store}/data.mdb").st_blocks * 512 < 8 * size, what=f"a store below 8 times {size} bytes")


@case
def names_that_go_with_requests_in_flight(world):
    """Requests that run and that wait end with the version they were admitted with, through removals and other content."""
    d = world.daemon("--device-memory", "16M")
    for i in range(3):
        put(d, world, f"n{i}", 130 + i)
    prompts = [numbers(8 + i, 200) for i in range(6)]
    wanted = [ask(d, [f"n{i % 3}"], t, 40) for i, t in enumerate(prompts)]
    digests = {n: a["digest"] for n, a in d.names().items()}
    admitted = d.status()["requests"]["admitted"]

    def change():
        until(lambda: d.status()["requests"]["admitted"] == admitted + 6, what="six admitted requests")
        d.ctl("remove", "n0").ok()
        put(d, world, "n1", 139, 8, range(0, 30, 5), "--replace")
        d.ctl("remove", "n2").ok()
        put(d, world, "n2", 132)
    got = together([lambda i=i, t=t: ask(d, [f"n{i % 3}"], t, 40) for i, t in enumerate(prompts)] + [change])[:6]
    for i, (g, w) in enumerate(zip(got, wanted)):
        check_answer(world, g, w, f"request {i}")
        check_equal(g["adapters"][0]["digest"], digests[f"n{i % 3}"], "the version that answered")
    d.ctl("generate", "--adapter", "n0", "--tokens", "1").refused("n0")
    status = d.idle()
    kept = [a for a in status["adapters"] if a["digest"] in (digests["n0"], digests["n1"])]
    check_equal([a["state"] for a in kept], ["store"] * 2, "removed versions, once unused")
    check(status["tiers"]["device"]["evictions"]["forgotten"] >= 2, status["tiers"])


@case
def evicted_and_read_again_under_load(world):
    """Sixteen adapters through room for three, 64 requests at once: as with room for all."""
    room = "384K" if world.exact else "640K"
    roomy = world.daemon("--device-memory", "128M")
    d = world.daemon("--device-memory", "48M", "--host-cache", room)
    names = [f"e{i:02}" for i in range(16)]
    folders = [adapters.write(f"{world.scratch}/{n}", dict(r=8), adapters.quick(8, 140 + i, range(0, 30, 5))) for i, n in enumerate(names)]
    for to in (roomy, d):
        to.ctl("import", *folders).ok()
    jobs = [([names[(i * 5) % 16]] if i % 4 else [names[i % 16], names[(i + 1) % 16]], numbers(i, 10)) for i in range(64)]
    wanted, got = [together([lambda r=r, t=t, to=to: ask(to, r, t, 4) for r, t in jobs]) for to in (roomy, d)]
    for (r, t), g, w in zip(jobs, got, wanted):
        check_answer(world, g, w, f"{r}")
    status = d.idle()
    check(status["cache"]["evictions"] >= 13 and status["pager"]["loads"] >= 16 and status["pager"]["failed"] == 0, status["cache"], status["pager"])
    check_equal(status["pager"]["loads"] - status["cache"]["evictions"], status["cache"]["resident"], "read, less evicted, and resident")
    check(status["tiers"]["device"]["bytes"] <= int(room[:-1]) * 1024, "more in memory than there may be:", status["tiers"])


@contextlib.contextmanager
def small_disk(world, size):
    folder = f"{world.scratch}/disk"
    os.mkdir(folder)
    if os.geteuid() != 0 or call(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).status != 0:
        raise Skipped("mounting a small file system takes root with CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        for d in world.own:
            d.kill()
        call(["umount", folder])


@case
def a_full_disk(world):
    """Imports fail by name, all that was there before is served and whole, and there is room again after a removal, at once."""
    with small_disk(world, "24m") as disk:
        folder = f"{disk}/daemon"
        os.mkdir(folder)
        d = world.daemon("--device-memory", "64M", folder=folder)
        put(d, world, "good", 160)
        folders = [adapters.write(f"{world.scratch}/f{i}", dict(r=64), adapters.quick(64, 161 + i)) for i in range(5)]  # 7 MB each
        with answering(world, d, ["good"]):
            results = [d.ctl("import", f) for f in folders]
            check_equal([r.status for r in results[:2]], [0, 0], "imports that fit")
            for r in results[results.index(next(r for r in results if r.status)):]:
                r.refused("f[0-9].*(space|full)")
        stored = sorted(set(d.names()) - {"good"})
        check(2 <= len(stored) <= 3, "stored:", stored)
        d.ctl("verify").ok()
        for name in stored:
            ask(d, [name], [1, 2, 3], 2)
        d.ctl("remove", stored[0]).ok()
        d.ctl("import", folders[4]).ok()
        d.ctl("verify").ok()
        ask(d, ["f4"], [1, 2, 3], 2)
        d.idle()
        d.term()


@case
def memory_that_never_suffices(world):
    """Requests and adapters that no wait would make room for are refused by a line that says so; small ones are served."""
    d = world.daemon("--device-memory", "3M", "--host-cache", "512K")
    put(d, world, "small", 170)
    put(d, world, "huge", 171, 64, range(10))
    with answering(world, d, ["small"]):
        d.ctl("generate", "-n", 500, "--tokens", "1,2,3").refused("503 tokens.*memory holds")
        d.ctl("score", "--tokens", ",".join(map(str, numbers(1, 600)))).refused("600 tokens.*memory holds")
        d.ctl("generate", "--adapter", "huge", "--tokens", "1,2,3").refused("huge")
        for verb in ("pin", "prefetch"):
            d.ctl(verb, "huge").refused("huge.*larger than the memory for adapters")
        together([lambda i=i: ask(d, ["small"], numbers(i, 20), 60) for i in range(4)])
    d.idle()


@case
def no_address_space_left(world):
    """The daemon may take no more memory from the kernel: whatever fails says so in one line, and all is well again after."""
    d = world.daemon("--device-memory", "64M")
    put(d, world, "good", 180)
    large = adapters.write(f"{world.scratch}/large", dict(r=256), adapters.quick(256, 181))
    wanted, before = ask(d, ["good"], numbers(9, 20), 4), resource.prlimit(d.process.pid, resource.RLIMIT_AS)
    with open(f"/proc/{d.process.pid}/statm") as f:
        mapped = int(f.read().split()[0]) * resource.getpagesize()
    resource.prlimit(d.process.pid, resource.RLIMIT_AS, (mapped + (256 << 10), before[1]))
    jobs = [lambda i=i: d.ctl("generate", "-n", 2000 - 5 * i, "--ignore-eos", "--deadline-ms", 1500, "--tokens", f"{i + 1},2,3") for i in range(24)]
    jobs += [lambda: d.ctl("import", large), lambda: d.ctl("verify"), lambda: d.ctl("list"), lambda: d.ctl("metrics")]
    results = together(jobs)
    check(d.alive(), "the daemon died:", d.log_tail())
    for r in results:
        check(r.status in (0, 1) and r.err.count("\n") == r.status, "neither an answer nor one line:", r)
    resource.prlimit(d.process.pid, resource.RLIMIT_AS, before)
    check_answer(world, ask(d, ["good"], numbers(9, 20), 4), wanted, "afterwards")
    d.ctl("import", "--replace", large).ok()
    ask(d, ["large"], [1, 2, 3], 2)
    d.idle()

# SPDX-License-Identifier: MIT
"""Import, list, show, verify, export, replace and remove; what import refuses; what outlives the daemon."""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time

import adapters
from adapters import key
from harness import Failed, Skipped, call, case, check, check_equal, until

P = ["--prompt", "Hello there, my"]


def answer(d, name):
    got = d.generate("-n", 8, "--ignore-eos", "--logprobs", 0, "--adapter", name, *P)
    return got["tokens"], got["logprobs"]


@case(daemon="sanitized")
def import_round_trip(world, d):
    """import, unchanged, refused without --replace, replaced, exported bit for bit, removed."""
    one = adapters.write(f"{world.scratch}/one", items=adapters.tensors(seed=1))
    two = adapters.write(f"{world.scratch}/two", items=adapters.tensors(seed=2, dtype="F32"))
    d.ctl("import", "--name", "r.t", one).ok()
    entry = d.names()["r.t"]
    check_equal(sorted(entry), ["bytes", "digest", "kind", "name", "state"], "fields of list")
    check(re.fullmatch("[0-9a-f]{64}", entry["digest"]) and entry["kind"] == "lora" and entry["bytes"] > 0, entry)
    check(entry["state"] in ("store", "loading", "host", "device"), entry)
    again = d.ctl("import", "--name", "r.t", one).ok()
    check("unchanged" in again.out, "the same again is not called unchanged:", again)
    d.ctl("import", "--name", "r.t", two).refused(r"r\.t")
    check_equal(d.names()["r.t"]["digest"], entry["digest"], "digest after a refusal")
    d.ctl("import", "--name", "other", one).ok()
    check_equal(d.names()["other"]["digest"], entry["digest"], "digest of the same content under another name")
    first = answer(d, "r.t")
    d.ctl("import", "--name", "r.t", "--replace", two).ok()
    check(d.names()["r.t"]["digest"] != entry["digest"] and answer(d, "r.t") != first, "--replace changed nothing")
    check_equal(answer(d, "other"), first, "the other name of the old version")
    d.ctl("show", "r.t").ok()
    check_equal(d.ctl("show", "--json", "r.t").json()["digest"], d.names()["r.t"]["digest"], "digest of show")
    d.ctl("verify").ok()
    d.ctl("verify", "r.t", "other").ok()
    for name in ("r.t", "other"):
        d.ctl("remove", name).ok()
    check(not {"r.t", "other"} & set(d.names()), "removed names are listed")
    d.ctl("generate", "--adapter", "r.t", *P).refused(r"r\.t")


def same_folder(a, b):
    with open(f"{a}/adapter_config.json", "rb") as f, open(f"{b}/adapter_config.json", "rb") as g:
        check_equal(g.read(), f.read(), "adapter_config.json")
    check_equal(read_tensors(b), read_tensors(a), "tensors")


def read_tensors(folder):
    with open(f"{folder}/adapter_model.safetensors", "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + n]), data[8 + n:]
    return {k: (v["dtype"], v["shape"], body[v["data_offsets"][0]:v["data_offsets"][1]]) for k, v in header.items() if k != "__metadata__"}


@case(daemon="sanitized")
def export_is_bit_equal(world, d):
    folders = {n: world.adapter(n) for n in ("json", "pirate", "list")}
    folders["f32"] = adapters.write(f"{world.scratch}/f32", items=adapters.tensors(seed=3, dtype="F32"))
    d.ctl("import", "--name", "f32", folders["f32"]).ok()
    for name, folder in folders.items():
        out = f"{world.scratch}/out-{name}"
        d.ctl("export", name, out).ok()
        same_folder(folder, out)
        d.ctl("import", "--name", name, out).ok()
        check_equal(d.ctl("import", "--name", name, out).ok().out.count("unchanged"), 1, "importing an export")
    d.ctl("export", "json", f"{world.scratch}/out-json").refused("out-json")
    d.ctl("remove", "f32").ok()


@case(daemon="sanitized")
def names_come_from_folders(world, d):
    folder = adapters.write(f"{world.scratch}/From.folder_1")
    d.ctl("import", folder + "/").ok()
    check("From.folder_1" in d.names(), "the folder's name was not taken")
    d.ctl("remove", "From.folder_1").ok()
    link = f"{world.scratch}/linked"
    os.makedirs(link)
    for f in os.listdir(folder):
        os.symlink(f"{folder}/{f}", f"{link}/{f}")
    d.ctl("import", "--name", "linked", link).ok()
    d.ctl("remove", "linked").ok()
    several = [adapters.write(f"{world.scratch}/several-{i}", items=adapters.tensors(seed=40 + i)) for i in range(3)]
    d.ctl("import", *several).ok()
    for i in range(3):
        d.ctl("remove", f"several-{i}").ok()


def changed(name, change):
    """Tensors with one of them changed (or dropped: change returns None)."""
    items = adapters.tensors()
    value = change(items[name])
    if value is None:
        del items[name]
    else:
        items[name] = value
    return items


def with_number(value):
    def change(tensor):
        dtype, shape, data = tensor
        return dtype, shape, data[:40] + struct.pack("<e", value) + data[42:]
    return change


def header_edit(name, **fields):
    return adapters.safetensors(adapters.tensors(), lambda h: h[name].update(fields))


def broken():
    """(what, arguments of adapters.write, what the line must name)"""
    a, b = key(1, "q_proj", "A"), key(1, "q_proj", "B")
    whole = adapters.safetensors(adapters.tensors())
    extra = adapters.tensors()
    extra["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = extra[a]
    rows = [
        ("empty file", dict(raw=b""), r"safetensors|short|header"),
        ("header only started", dict(raw=whole[:5]), r"safetensors|short|header"),
        ("header cut", dict(raw=whole[:100]), r"safetensors|short|header"),
        ("data cut", dict(raw=whole[:-3]), r"layers\.|safetensors|short|end"),
        ("data surplus", dict(raw=whole + b"12"), r"safetensors|surplus|trailing|bytes"),
        ("header of 2^63 bytes", dict(raw=struct.pack("<Q", 1 << 63) + whole[8:]), r"header"),
        ("header not JSON", dict(raw=whole[:8] + b"[" + whole[9:]), r"header|JSON"),
        ("a pickle", dict(raw=b"\x80\x02}q\x00." + b"0" * 64), r"header|safetensors"),
        ("offsets beyond the end", dict(raw=header_edit(a, data_offsets=[0, 1 << 40])), r"q_proj\.lora_A"),
        ("offsets backwards", dict(raw=header_edit(a, data_offsets=[64, 0])), r"q_proj\.lora_A"),
        ("negative offset", dict(raw=header_edit(a, data_offsets=[-8, 0])), r"q_proj\.lora_A"),
        ("overlapping tensors", dict(raw=header_edit(a, data_offsets=[0, 4608])), r"lora_"),
        ("shape not of the bytes", dict(raw=header_edit(a, shape=[4, 577])), r"q_proj\.lora_A"),
        ("shape that overflows", dict(raw=header_edit(a, shape=[1 << 62, 1 << 62])), r"q_proj\.lora_A"),
        ("dtype unknown", dict(raw=header_edit(a, dtype="I8")), r"q_proj\.lora_A|I8"),
        ("A without B", dict(items=changed(b, lambda t: None)), r"q_proj"),
        ("B without A", dict(items=changed(a, lambda t: None)), r"q_proj"),
        ("NaN", dict(items=changed(a, with_number(float("nan")))), r"q_proj\.lora_A"),
        ("infinity", dict(items=changed(b, with_number(float("-inf")))), r"q_proj\.lora_B"),
        ("width of another model", dict(items=changed(a, lambda t: (t[0], (2, 1152), t[2]))), r"q_proj"),
        ("rank of A and B differ", dict(items=changed(b, lambda t: (t[0], (288, 8), t[2]))), r"q_proj"),
        ("tensor of unknown meaning", dict(items=extra), r"lora_C"),
        ("layer beyond the model", dict(items=adapters.tensors(layers=[30])), r"layers\.30"),
        ("no tensor", dict(items={}), r"tensor|empty|no "),
    ]
    keys = [
        (dict(peft_type="IA3"), r"peft_type|IA3"), (dict(peft_type=None), r"peft_type"), (dict(use_dora=True), r"use_dora"),
        (dict(init_lora_weights="pissa"), r"init_lora_weights|pissa"), (dict(init_lora_weights="loftq"), r"init_lora_weights|loftq"),
        (dict(bias="all"), r"bias"), (dict(lora_bias=True), r"lora_bias"), (dict(modules_to_save=["lm_head"]), r"modules_to_save"),
        (dict(wings=2), r"wings"), (dict(fan_in_fan_out=True), r"fan_in_fan_out"), (dict(use_qalora=True), r"use_qalora"),
        (dict(alora_invocation_tokens=[1]), r"alora_invocation_tokens"), (dict(trainable_token_indices=[5]), r"trainable_token_indices"),
        (dict(target_parameters=["x"]), r"target_parameters"), (dict(layer_replication=[[0, 4]]), r"layer_replication"),
        (dict(lora_alpha="eight"), r"lora_alpha"), (dict(lora_alpha=1e400), r"lora_alpha|JSON|config"), (dict(r=0), r"\br\b|rank"),
        (dict(rank_pattern={"q_proj": -1}), r"rank_pattern"), (dict(alpha_pattern={"q_proj": "x"}), r"alpha_pattern"),
        (dict(target_modules=["k_proj"]), r"q_proj|target_modules"), (dict(target_modules="["), r"target_modules"),
    ]
    return rows + [(f"config {c}", dict(conf=c), p) for c, p in keys]


@case(daemon="sanitized")
def broken_adapters_are_refused(world, d):
    before, wrong = d.names(), []
    rows = broken()
    for i, (what, how, pattern) in enumerate(rows):
        folder = adapters.write(f"{world.scratch}/b{i}", **how)
        try:
            d.ctl("import", "--name", "broken", folder).refused("(?i)" + pattern)
        except Failed as e:
            wrong.append(f"{what}: {e}")
            d.ctl("remove", "broken")
        shutil.rmtree(folder)
    check(not wrong, f"{len(wrong)} of {len(rows)} rows:\n  " + "\n  ".join(wrong))
    check_equal(d.names(), before, "adapters afterwards")
    answer(d, "json")


@case(daemon="sanitized")
def broken_folders_are_refused(world, d):
    def folder(name, edit):
        path = adapters.write(f"{world.scratch}/{name}")
        edit(path)
        return path
    config, weights = "adapter_config.json", "adapter_model.safetensors"

    def put(name, text):
        def edit(path):
            with open(f"{path}/{name}", "w") as f:
                f.write(text)
        return edit

    def fifo(path):
        os.unlink(f"{path}/{weights}")
        os.mkfifo(f"{path}/{weights}")

    def pickle_only(path):
        os.rename(f"{path}/{weights}", f"{path}/adapter_model.bin")
    rows = [
        ("no-config", lambda p: os.unlink(f"{p}/{config}"), config), ("no-weights", lambda p: os.unlink(f"{p}/{weights}"), weights),
        ("pickle", pickle_only, r"adapter_model\.(bin|safetensors)"), ("fifo", fifo, weights),
        ("weights-a-folder", lambda p: (os.unlink(f"{p}/{weights}"), os.mkdir(f"{p}/{weights}")), weights),
        ("dangling", lambda p: (os.unlink(f"{p}/{weights}"), os.symlink("nowhere", f"{p}/{weights}")), weights),
        ("config-empty", put(config, ""), config), ("config-text", put(config, "hello"), config),
        ("config-list", put(config, "[]"), config), ("config-deep", put(config, "[" * 100000), config),
        ("config-twice", put(config, '{"r": 4, "r": 8, "peft_type": "LORA"}'), config + r"|\br\b"),
        ("config-large", put(config, '{"x": "' + "a" * (64 << 20) + '"}'), config),
    ]
    wrong = []
    for name, edit, pattern in rows:
        try:
            d.ctl("import", "--name", "broken", folder(name, edit)).refused(pattern)
        except Failed as e:
            wrong.append(f"{name}: {e}")
            d.ctl("remove", "broken")
    try:
        d.ctl("import", "--name", "broken", __file__).refused("store.py")
    except Failed as e:
        wrong.append(f"a plain file: {e}")
    check(not wrong, f"{len(wrong)} of {len(rows) + 1} rows:\n  " + "\n  ".join(wrong))


@case(daemon="sanitized")
def every_truncation_is_refused(world, d):
    """Cuts of a small valid file, at 40 places."""
    whole = adapters.safetensors(adapters.tensors(rank=1, layers=range(1)))
    for i in range(40):
        cut = len(whole) * i // 40
        folder = adapters.write(f"{world.scratch}/cut{i}", dict(r=1, layers_to_transform=[0]), raw=whole[:cut])
        d.ctl("import", "--name", "cut", folder).refused(".")


@case(daemon="gguf")
def remove_and_replace_while_in_use(world, d):
    """A running request keeps the version it started with."""
    one = adapters.write(f"{world.scratch}/one", items=adapters.tensors(seed=21))
    two = adapters.write(f"{world.scratch}/two", items=adapters.tensors(seed=22))
    n = 300
    d.ctl("import", "--name", "live", one).ok()
    whole = d.generate("-n", n, "--ignore-eos", "--adapter", "live", *P)["text"]
    for change in (["import", "--name", "live", "--replace", two], ["remove", "live"]):
        d.ctl("import", "--name", "live", "--replace", one).ok()
        p = d.ctl_start("generate", "-n", n, "--ignore-eos", "--adapter", "live", *P)
        first = p.stdout.read(8)
        check(p.poll() is None, "the request ended before the change")
        d.ctl(*change).ok()
        rest, error = p.communicate(timeout=120)
        check_equal((p.returncode, error), (0, b""), f"the running request during {change[0]}")
        check_equal((first + rest).decode().rstrip("\n"), whole.rstrip("\n"), f"its text during {change[0]}")
    d.ctl("generate", "--adapter", "live", *P).refused("live")


@case
def content_without_a_name_leaves_memory(world):
    """After --replace as after remove; a pin moves on to the new content."""
    one = adapters.write(f"{world.scratch}/one", items=adapters.tensors(seed=23))
    two = adapters.write(f"{world.scratch}/two", items=adapters.tensors(seed=24))
    d = world.daemon()

    def resident(what, wanted):
        until(lambda: d.status()["cache"]["resident"] == wanted, what=what)

    d.ctl("import", "--name", "x", one).ok()
    answer(d, "x")
    resident("one in memory", 1)
    d.ctl("import", "--name", "x", "--replace", two).ok()
    resident("what was replaced is gone", 0)
    answer(d, "x")
    resident("two in memory", 1)
    d.ctl("pin", "x").ok()
    d.ctl("import", "--name", "x", "--replace", one).ok()
    check(d.ctl("show", "--json", "x").json()["pinned"], "the pin did not move on")
    d.ctl("remove", "x").ok()
    resident("what was removed is gone", 0)


@case
def a_restart_keeps_the_store(world):
    d = world.daemon()
    folder = adapters.write(f"{world.scratch}/x")
    d.ctl("import", "--name", "x", folder).ok()
    listed, said = d.names()["x"], answer(d, "x")
    d.term()
    check(not os.path.exists(d.socket), "the socket is still there after SIGTERM")
    d.start()
    check_equal(d.names()["x"]["digest"], listed["digest"], "digest after a restart")
    check_equal(answer(d, "x"), said, "answer after a restart")


@case
def kill_9_leaves_a_good_store(world):
    """Killed between and amid imports; the next daemon replaces the stale socket, every listed adapter verifies and answers."""
    d = world.daemon()
    for i in range(4):
        folder = adapters.write(f"{world.scratch}/k{i}", dict(r=32, lora_alpha=64), adapters.tensors(32, seed=i, layers=range(6)))
        d.ctl("import", "--name", f"k{i}", folder).ok()
        p = d.ctl_start("import", "--name", f"amid{i}", folder if i % 2 else world.adapter("json"))
        time.sleep(0.03 * i)
        d.kill()
        p.communicate()
        check(os.path.exists(d.socket), "a killed daemon removed its socket?")
        d.start()
        check({f"k{j}" for j in range(i + 1)} <= set(d.names()), f"adapters are gone: {sorted(d.names())}")
        d.ctl("verify").ok()
    for name in d.names():
        answer(d, name)


@case
def many_adapters_through_a_small_cache(world):
    """More adapters than the cache holds: they are evicted and paged in again, and answer as before."""
    d = world.daemon("--host-cache", "2M" if world.exact else "4M")
    names = [f"c{i}" for i in range(12)]
    for i, name in enumerate(names):
        folder = adapters.write(f"{world.scratch}/{name}", dict(r=16, lora_alpha=16), adapters.tensors(16, seed=60 + i, layers=range(0, 30, 3)))
        d.ctl("import", "--name", name, folder).ok()
    first = [answer(d, n) for n in names]
    for n, a in list(zip(names, first))[::-1]:
        check_equal(answer(d, n), a, f"{n} after eviction")
    check(d.metric("lorad_cache_evictions_total") > 0, "nothing was evicted")


@case(daemon="gguf")
def pin_and_prefetch(world, d):
    for verb in ("prefetch", "pin", "unpin"):
        d.ctl(verb, "list").ok()
        until(lambda: d.names()["list"]["state"] == "device", what=f"state device after {verb}")
    d.ctl("pin", "list").ok()
    d.ctl("pin", "list").ok()
    d.ctl("unpin", "list").ok()


@case
def a_damaged_image_fails_only_its_requests(world):
    """Bytes of one adapter flipped in data.mdb: its requests fail and verify names it, the others go on."""
    d = world.daemon("--adapter-type", "source")
    for name in ("json", "pirate"):
        d.ctl("import", "--name", name, world.adapter(name)).ok()
    d.term()
    needle = next(v for k, v in read_tensors(world.adapter("json")).items() if k.endswith("layers.7.self_attn.q_proj.lora_A.weight"))[2][:64]
    path = f"{d.store}/data.mdb"
    with open(path, "r+b") as f:
        at = f.read().find(needle)
        check(at > 0, "the adapter's own numbers are not in data.mdb")
        f.seek(at)
        f.write(bytes(b ^ 0x40 for b in needle))
    d.start()
    d.ctl("generate", "--adapter", "json", *P).refused("json|checksum|corrupt|damaged")
    d.ctl("verify", "json").refused("json")
    d.ctl("verify", "pirate").ok()
    answer(d, "pirate")
    d.ctl("import", "--name", "json", "--replace", world.adapter("json"))


def small_adapters(world, n):
    """Folders of n small adapters, in order."""
    call([f"{world.source}/tests/bench/store", "make", f"{world.scratch}/many", "--adapters", n]).ok()
    return [f"{world.scratch}/many/{name}" for name in sorted(os.listdir(f"{world.scratch}/many"))]


@case
def bulk_import_goes_on_after_a_bad_one(world):
    """300 paths, 3 of them bad: each is named, all others are in the store; called again, nothing is imported twice."""
    d, paths = world.daemon(), small_adapters(world, 300)
    with open(f"{paths[100]}/adapter_model.safetensors", "r+b") as f:
        f.truncate(5000)
    os.unlink(f"{paths[200]}/adapter_config.json")
    bad = [paths[100], paths[200], f"{world.scratch}/nowhere"]
    for again in (False, True):
        got = d.ctl("import", *paths[:150], bad[2], *paths[150:])
        lines = got.err.splitlines()
        check(got.status == 1 and got.out == "", "a bulk import with bad ones:", got)
        check_equal(len(lines), 4, f"lines on stderr ({got.err!r})")
        for path in bad:
            check(any(path in line for line in lines[:3]), f"{path} is not named in", lines)
        check_equal(re.findall(r"\d+", lines[3]), ["3", "301", "298", "298" if again else "0"], f"the summary {lines[3]!r}")
        check_equal(len(d.names()), 298, "adapters")
    good = [p for p in paths if p not in bad]
    check_equal([a["result"] for a in d.ctl("import", "--json", *good).json()], ["unchanged"] * 298, "results, in the paths' order")
    check_equal(d.ctl("import", *good[:2]).ok().out.splitlines()[2], "2 adapters, 2 of them unchanged", "the last line")
    d.ctl("verify").ok()
    answer(d, "a00299")


def n_fds(d):
    return len(os.listdir(f"/proc/{d.process.pid}/fd"))


@case
def a_killed_importer_leaves_nothing(world):
    """Killed amid 400 imports: what is there is whole, no descriptor stays open, and the next run goes on from there."""
    d, paths = world.daemon(), small_adapters(world, 400)
    before = n_fds(d)
    p = d.ctl_start("import", *paths)
    until(lambda: 20 < len(d.names()) < 400, what="some adapters, but not all")
    p.kill()
    p.communicate()
    until(lambda: n_fds(d) == before, what="as many descriptors as before")
    there = len(d.names())
    check(there < 400, "all were imported before the kill")
    d.ctl("verify").ok()
    results = [a["result"] for a in d.ctl("import", "--json", *paths).json()]
    check_equal((results.count("unchanged"), len(results)), (there, 400), "unchanged, and all, of the second run")
    check_equal(len(d.names()), 400, "adapters")


@case
def a_full_disk_refuses_imports(world):
    """The store on a small tmpfs: what does not fit is refused, the daemon serves on, and imports again when there is room."""
    d, paths = world.daemon(start=False), small_adapters(world, 260)
    os.makedirs(d.store)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", d.store], stderr=subprocess.DEVNULL).returncode:
        raise Skipped("no tmpfs can be mounted here")
    try:
        d.start()
        got = d.ctl("import", *paths)
        check(got.status == 1 and "no space left" in got.err, "a full disk:", got)
        there = d.names()
        check(50 < len(there) < 260, len(there), "adapters fit")
        d.ctl("verify").ok()
        last = max(there)
        answer(d, last)
        d.ctl("import", "--name", "late", paths[-1]).refused("late|a00259.*no space left")
        for name in sorted(there)[:30]:
            d.ctl("remove", name).ok()
        d.ctl("import", "--name", "late", paths[-1]).ok()
        answer(d, "late")
        answer(d, last)
        d.term()
        d.start()
        d.ctl("verify").ok()
        d.term()
    finally:
        d.kill()
        subprocess.run(["umount", "-l", d.store])


@case
def verify_holds_nobody_up(world):
    """At a low rate it takes its time, while imports, removals and answers do not wait; Ctrl-C ends it."""
    d, paths = world.daemon(), small_adapters(world, 40)
    d.ctl("import", *paths[:30]).ok()
    p = d.ctl_start("verify", "--rate", "1M")  # 30 of 119 KB: over 3 s
    began = time.monotonic()
    d.ctl("import", *paths[30:]).ok()
    d.ctl("remove", "a00029").ok()
    answer(d, "a00000")
    check(p.poll() is None, "verify was not slowed down")
    check_equal(p.communicate()[0], b"30 adapters are as they were imported\n", "verify, of one that was removed too")
    check(time.monotonic() - began > 2.5, "verify took", time.monotonic() - began, "s")
    p = d.ctl_start("verify", "--rate", "10K")
    time.sleep(0.3)
    p.send_signal(signal.SIGINT)
    p.communicate()
    began = time.monotonic()
    d.ctl("verify", "a00001").ok()
    check(time.monotonic() - began < 5, "the interrupted verify went on")


@case
def compact_gives_space_back(world):
    """While answers page adapters in through a small cache; a daemon killed amid it and the next one find everything."""
    d, paths = world.daemon("--host-cache", "1M"), small_adapters(world, 200)
    d.ctl("import", *paths).ok()
    said = {n: answer(d, n) for n in ("a00190", "a00191", "a00192")}
    for i in range(190):
        d.ctl("remove", f"a{i:05d}").ok()
    size = os.path.getsize(f"{d.store}/data.mdb")
    p = d.ctl_start("compact")
    for _ in range(4):
        check_equal({n: answer(d, n) for n in said}, said, "answers during compact")
    p.communicate()
    check_equal(p.returncode, 0, "exit of compact")
    check(os.path.getsize(f"{d.store}/data.mdb") < size / 10, "data.mdb did not shrink")
    check_equal({n: answer(d, n) for n in said}, said, "answers after compact")
    d.ctl("import", *paths[:50]).ok()
    for i in range(20):
        d.ctl("remove", f"a{i:05d}").ok()
    p = d.ctl_start("compact")
    time.sleep(0.02)
    d.kill()
    p.communicate()
    d.start()
    check_equal(sorted(os.listdir(d.store)), ["data.mdb", "lock.mdb", "lorad.lock"], "files of the store")
    check_equal(len(d.names()), 40, "adapters")
    d.ctl("verify").ok()
    check_equal({n: answer(d, n) for n in said}, said, "answers of the next daemon")
    check_equal(d.ctl("compact", "--json").json()["bytes_free"] < 1 << 20, True, "little is free after compact")

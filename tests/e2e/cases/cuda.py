# SPDX-License-Identifier: MIT
"""The CUDA backend end to end, on the simulated GPU (tests/lorad-cudasim), against the CPU in f32.

Most cases run a model of two layers cut from the real one (tests/make-tiny.py: width 576, 9 heads over 3, 1,531 tokens) with
adapters of ranks 1, 8 and 24, at several seeds: the seed decides in which order streams, blocks and lanes get on.
"""
import os
import random
import re
import socket
import sys
import threading

from harness import Daemon, Skipped, call, case, check, check_equal, together, until

SEEDS = range(1, 9)
NAMES = ("base", "r1-all", "r8-qv", "r24-bf16")
SUM = ["--adapter", "r1-all:0.5", "--adapter", "r24-bf16:0.75"]


def of(name):
    return [] if name == "base" else SUM if name == "sum" else ["--adapter", name]


def texts(n, length):
    numbers = random.Random(1)
    return [",".join(str(numbers.randrange(20, 1500)) for _ in range(length)) for _ in range(n)]


class Tiny:
    """The cut model as GGUF and as a Hugging Face folder, its adapters, made once a run."""

    def __init__(self, world):
        if not world.hf:
            raise Skipped("no Hugging Face folder was given (--hf)")
        if not os.path.exists(f"{world.build}/tests/lorad-cudasim"):
            raise Skipped("the simulator was not built (libblas-dev is missing)")
        self.world, self.gguf, self.hf, self.adapters = world, f"{world.root}/tiny.gguf", f"{world.root}/tiny", f"{world.root}/tiny-adapters"
        if not os.path.exists(self.adapters):
            tests = f"{world.source}/tests"
            made = call([sys.executable, f"{tests}/make-tiny.py", world.model, self.gguf])
            if "No module named" in made.err:
                raise Skipped("making the model needs gguf (tests/requirements.txt)")
            made.ok()
            call([sys.executable, f"{tests}/make-hf.py", self.gguf, self.hf]).ok()
            call([sys.executable, f"{tests}/golden/make-adapters.py", self.hf, self.adapters, *NAMES[1:], "r16-all"]).ok()

    def start(self, *args, model=None, gpu=True, seed=1, sanitized=False, **env):
        """A daemon on the simulated GPU (or the CPU) with the adapters in its store."""
        how = dict(program="tests/lorad-cudasim", env=dict(CUDASIM_SEED=str(seed), **env)) if gpu else {}
        args = ("--device", "cuda" if gpu else "cpu", "--device-memory", "48M", "--host-cache", "64M", *args)
        d = self.world.daemon(*args, model=model or self.hf, sanitized=sanitized, **how)
        for name in (*NAMES[1:], "r16-all"):
            d.ctl("import", "--name", name, f"{self.adapters}/{name}").ok()
        return d


def score(d, name, tokens):
    return d.ctl("score", "--json", *of(name), "--tokens", tokens).json()["logprobs"][1:]


def scores(d, jobs):
    return together([lambda n=n, t=t: score(d, n, t) for n, t in jobs])


def check_close(got, wanted, mean, largest, what):
    diff = [abs(a - b) for g, w in zip(got, wanted) for a, b in zip(g, w)]
    check(len(diff) == sum(map(len, wanted)), what, "lengths differ")
    check(sum(diff) / len(diff) <= mean and max(diff) <= largest, f"{what}: mean {sum(diff) / len(diff):.5f}, largest {max(diff):.5f}")


def reference(tiny, jobs, model=None):
    """From the CPU in f32, which golden.py holds against transformers and PEFT."""
    d = tiny.start("--precision", "f32", gpu=False, model=model)
    wanted = scores(d, jobs)
    d.term()
    return wanted


@case
def gpu_logprobs_f32(world):
    """Mixed batches: base, three adapters of unlike ranks and a weighted sum at once, prefills of 1 to 70 rows."""
    tiny = Tiny(world)
    jobs = [(n, t) for n in (*NAMES, "sum") for t in texts(1, 70 if n == "r24-bf16" else 9) + texts(1, 2)]
    wanted = reference(tiny, jobs)
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", seed=seed)
        check_close(scores(d, jobs), wanted, 0.00005, 0.0005, f"seed {seed}")
        check(d.status()["steps"]["max_adapters"] > 1, "no step had unlike adapters")
        check_equal(d.status()["device"], "cuda:0", "device")
        d.term()


@case
def gpu_logprobs_quantised(world):
    """Q4_1 and Q8_0 as they are in the file, decoded to bf16: the bounds that the CPU's int8 path is held to."""
    tiny = Tiny(world)
    jobs = [(n, t) for n in (*NAMES, "sum") for t in texts(1, 70 if n == "base" else 20)]
    wanted = reference(tiny, jobs, tiny.gguf)
    for seed in SEEDS:
        d = tiny.start(model=tiny.gguf, seed=seed)
        check_close(scores(d, jobs), wanted, 0.085, 0.6, f"seed {seed}")
        d.term()


@case
def gpu_bf16_sanitized(world):
    """The same under AddressSanitizer and UBSan, dense bf16 weights."""
    tiny = Tiny(world)
    if not world.sanitized:
        raise Skipped("no sanitizer build was given (--sanitized)")
    jobs = [(n, t) for n in ("base", "r24-bf16", "sum") for t in texts(1, 6)]
    wanted = reference(tiny, jobs)
    d = tiny.start("--precision", "bf16", sanitized=True)
    check_close(scores(d, jobs), wanted, 0.085, 0.6, "bf16")
    d.term(60)


def generated(d, jobs):
    ask = lambda n, t, m: d.generate("--ignore-eos", "-n", m, *of(n), "--tokens", t)["tokens"]
    return together([lambda n=n, t=t, m=m: ask(n, t, m) for n, t, m in jobs])


@case
def gpu_pages_in_and_evicts(world):
    """Room for one large adapter on the device and in the host cache: both tiers evict, answers stay as they were."""
    tiny = Tiny(world)
    jobs = [(n, texts(1, 5)[0], 3) for n in (*NAMES, "r16-all")]
    wanted = None
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", "--host-cache", "2M", "--device-memory", "2560K", "--context", "128", seed=seed)
        wanted = wanted or generated(d, jobs)
        for _ in range(2):
            check_equal(generated(d, jobs), wanted, f"seed {seed}")
        check(d.metric("lorad_cache_evictions_total") > 0, "nothing was evicted")
        check(d.metric("lorad_cache_uploads_total") > len(NAMES), "nothing was uploaded again")
        d.term()


@case
def gpu_prefetches_while_idle(world):
    """A prefetch and a pin reach the device though nobody asks for an answer; with recorded steps running meanwhile too."""
    tiny = Tiny(world)
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", "--cuda-graphs", "on", seed=seed)
        d.ctl("prefetch", "r8-qv").ok()
        d.ctl("pin", "r1-all").ok()
        until(lambda: [d.names()[n]["state"] for n in ("r8-qv", "r1-all")] == ["device"] * 2, what="both on the device")
        busy = d.ctl_start("generate", "--json", "-n", 40, "--ignore-eos", "--tokens", "20,30,40")
        d.ctl("prefetch", "r24-bf16").ok()
        until(lambda: d.names()["r24-bf16"]["state"] == "device", what="the third on the device")
        check_equal(busy.communicate(timeout=60)[1] + str(busy.returncode).encode(), b"0", "the request meanwhile")
        d.term()


@case
def gpu_preempts(world):
    """Five KV blocks (192 KiB for 64 tokens) for three requests of two: the youngest yields and is computed again."""
    tiny = Tiny(world)
    jobs = [(n, t, 20) for n, t in zip(("base", "r1-all", "r8-qv"), texts(3, 61))]
    alone = None
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", "--device-memory", "1280K", "--context", "128", seed=seed)
        generated(d, [(n, "20,30", 1) for n, _, _ in jobs])  # have the adapters there: nobody is to get ahead
        alone = alone or [generated(d, [job])[0] for job in jobs]
        check_equal(generated(d, jobs), alone, f"seed {seed}")
        check(d.status()["requests"]["preempted"] > 0, "nobody was preempted")
        d.term()


@case
def gpu_cancels(world):
    tiny = Tiny(world)
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", seed=seed)
        wanted = generated(d, [("r8-qv", "20,30,40", 4)])
        clients = [d.ctl_start("generate", "-n", 4000, "--ignore-eos", *of(n), "--tokens", "20,30,40") for n in NAMES]
        until(lambda: d.metric("lorad_requests_running") == len(NAMES), what="running requests")
        for c in clients:
            c.kill()
            c.communicate()
        until(lambda: d.metric("lorad_requests_running") == 0, what="requests of dead clients gone")
        check_equal(generated(d, [("r8-qv", "20,30,40", 4)]), wanted, f"seed {seed}, after cancelled requests")
        d.term()


@case
def gpu_records_steps(world):
    """Decodes replayed from recorded steps: other batch sizes, adapters and lengths than they were recorded with."""
    tiny = Tiny(world)
    jobs = [(n, t, 10 + i) for i, (n, t) in enumerate(zip((*NAMES, "sum"), texts(5, 6)))]
    eager = tiny.start("--precision", "f32")
    wanted = generated(eager, jobs)
    eager.term()
    for seed in SEEDS:
        d = tiny.start("--precision", "f32", "--cuda-graphs", "on", seed=seed)
        check_equal(generated(d, jobs), wanted, f"seed {seed}")
        check_equal([generated(d, [job])[0] for job in jobs[:2]], wanted[:2], f"seed {seed}, one by one")
        d.term()


@case
def gpu_recording_refused(world):
    """A recording that cannot be made is computed step by step."""
    tiny = Tiny(world)
    jobs = [("r1-all", "20,30,40", 8)]
    wanted = generated(tiny.start("--precision", "f32"), jobs)
    for call_name in ("StreamBeginCapture", "StreamEndCapture", "GraphInstantiate"):
        d = tiny.start("--precision", "f32", "--cuda-graphs", "on", CUDASIM_FAIL=f"{call_name}:1")
        check_equal(generated(d, jobs), wanted, call_name)
        d.term()


@case
def gpu_host_cache_not_registered(world):
    """cudaHostRegister refuses the host cache: the log says so, uploads take the detour."""
    tiny = Tiny(world)
    jobs = [(n, "20,30,40,50", 6) for n in NAMES]
    plain = tiny.start("--precision", "f32")
    wanted = generated(plain, jobs)
    n = 1
    while True:  # which of the registrations it is depends on how many come before
        d = tiny.start("--precision", "f32", CUDASIM_FAIL=f"HostRegister:{n}")
        check_equal(generated(d, jobs), wanted, f"registration {n} refused")
        d.term()
        if "detour" in d.log_tail():
            break
        n += 1
        check(n < 12, "the log never speaks of a detour")


# ---- devices that fail ----

def lost(d, patterns):
    """The daemon ends with status 3; its log and (where we can listen) the journal have the reason."""
    d.process.wait(timeout=30)
    check_equal(d.process.returncode, 3, "exit status")
    for pattern in patterns:
        check(re.search(pattern, d.log_tail()), f"the log lacks /{pattern}/: {d.log_tail()}")


class Journal:
    """Listens where the journal would, if nobody does and we may."""

    PATH = "/run/systemd/journal/socket"

    def __enter__(self):
        self.entries, self.socket = [], None
        if os.geteuid() == 0 and not os.path.exists(self.PATH):
            os.makedirs(os.path.dirname(self.PATH), exist_ok=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(self.PATH)
            threading.Thread(target=self.listen, daemon=True).start()
        return self

    def listen(self):
        try:
            while True:
                self.entries.append(self.socket.recv(65536).decode("utf-8", "replace"))
        except OSError:
            pass

    def __exit__(self, *_):
        if self.socket:
            os.unlink(self.PATH)
            self.socket.close()


@case
def gpu_that_fails_while_serving(world):
    """ECC error, illegal address, launch failure, removed device: requests end with the reason, the daemon with status 3."""
    tiny = Tiny(world)
    with open(f"{world.source}/systemd/lorad.catalog", encoding="utf-8") as f:
        ids = re.findall(r"^-- ([0-9a-f]{32})$", f.read(), re.M)
    for code, name, message_id in ((214, "ECC", ids[0]), (700, "IllegalAddress", ids[1]), (719, "LaunchFailure", ids[2]), (46, "Unavailable", ids[3])):
        with Journal() as journal:
            d = tiny.start("--precision", "f32", CUDASIM_FAIL=f"async:1500:{code}")
            asked = [d.ctl_start("generate", "--json", "-n", 2000, "--ignore-eos", *of(n), "--tokens", "20,30,40") for n in NAMES]
            ends = [c.communicate(timeout=60) + (c.returncode,) for c in asked]
            for out, err, status in ends:
                check_equal(status, 1, f"status of a client ({err!r})")
                check(name.encode() in err or b"connection" in err, f"the client is not told: {err!r}")
            check(any(name.encode() in err for _, err, _ in ends), "no client is told the reason")
            lost(d, [name])
            if journal.socket:
                until(lambda: any(f"MESSAGE_ID={message_id}" in e and f"LORAD_CUDA_ERROR={code}" in e for e in journal.entries),
                      what=f"journal entry {message_id}")


@case
def gpu_launch_that_fails(world):
    tiny = Tiny(world)
    d = tiny.start("--precision", "f32", CUDASIM_FAIL="LaunchKernelExC:200:719")
    d.ctl("generate", "--json", "-n", 200, "--ignore-eos", "--tokens", "20,30,40").refused("LaunchFailure")
    lost(d, ["LaunchFailure"])


def refused_gpu(tiny, pattern, *args, **env):
    """With --device cuda one clear line and exit 1."""
    d = Daemon(tiny.world.build, tiny.hf, tiny.world.scratch, ("--device", "cuda", *args), program="tests/lorad-cudasim", env=env)
    got = call(d.command, 90, env=d.env)
    check_equal((got.status, got.out), (1, ""), f"status and stdout of {got}")
    check(re.search(pattern, got.err.rstrip("\n").rpartition("\n")[2]), f"the last line does not match /{pattern}/:", got)


@case
def gpu_that_cannot_be_had(world):
    tiny = Tiny(world)
    refused_gpu(tiny, "device: cuda:0: .*no", CUDASIM_DEVICES="0")
    refused_gpu(tiny, "device: cuda:0: .*driver.*12", CUDASIM_DRIVER="12000")
    refused_gpu(tiny, "device: cuda:7: ", "--device", "cuda:7")
    refused_gpu(tiny, "kv-type: int8: ", "--kv-type", "int8")
    refused_gpu(tiny, "the weights need .* of device memory, .* are free", CUDASIM_MEMORY="48M")
    refused_gpu(tiny, "device-memory: 4096 MiB asked for, .* MiB are available", "--device-memory", "4G", CUDASIM_MEMORY="1G")
    refused_gpu(tiny, "device-memory: .* does not fit: .* MiB are free", "--device-memory", "900M", CUDASIM_MEMORY="1G")
    refused_gpu(tiny, "device: cuda:0: .*CUDA|device: cuda:0: ", CUDASIM_FAIL="cuda_api:1")


@case
def auto_takes_the_gpu_or_says_why_not(world):
    tiny = Tiny(world)
    for device, pattern, env in (("cuda:0", "on cuda:0", {}), ("cpu", "the CPU computes; device: cuda:0: ", dict(CUDASIM_DEVICES="0")),
                                 ("cpu", "the CPU computes; .*the weights need", dict(CUDASIM_MEMORY="48M"))):
        d = world.daemon("--device", "auto", "--device-memory", "64M" if env else "48M", "--host-cache", "16M", model=tiny.hf,
                         program="tests/lorad-cudasim", env=dict(CUDASIM_SEED="1", **env))
        check_equal(d.status()["device"], device, "device")
        check(re.search(pattern, d.log_tail()), f"the log lacks /{pattern}/: {d.log_tail()}")
        d.generate("-n", 2, "--tokens", "20,30,40")
        d.term()


@case
def gpu_real_model(world):
    """SmolLM2-135M from its Q4_1 file with a trained adapter: 12 tokens in all, scored and drawn as on the CPU."""
    tiny = Tiny(world)
    prompt = "504,3575,282,4649,314"  # The capital of France is
    answers = []
    for gpu in (True, False):
        how = dict(program="tests/lorad-cudasim", env=dict(CUDASIM_SEED="3", CUDASIM_GUARD="0")) if gpu else {}
        d = tiny.world.daemon("--device", "cuda" if gpu else "cpu", "--device-memory", "256M", "--host-cache", "64M",
                              *([] if gpu else ["--precision", "f32"]), **how)
        d.ctl("import", "--name", "pirate", world.adapter("pirate")).ok()
        answers.append(together([lambda a=a: d.generate("--logprobs", 1, "-n", 2, *a, "--tokens", prompt) for a in ([], ["--adapter", "pirate"])]))
        d.term()
    for gpu, cpu in zip(*answers):
        check_equal(gpu["tokens"], cpu["tokens"], "tokens")
        check_close([gpu["logprobs"]], [cpu["logprobs"]], 0.2, 0.6, "log-probabilities")

# SPDX-License-Identifier: MIT
"""What the end-to-end cases share: programs of a build tree, daemons with a folder of their own, cases and checks.

A case is a function with @case; it gets a World. Cases that name a shared daemon (`@case(daemon="f32")`) get it running
and leave it as they found it; those that need a daemon of their own make one with `world.daemon(...)`, which ends with the
case. A check that fails raises Failed; Skipped ends a case with its reason.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from types import SimpleNamespace

CASES = []
START_LIMIT = 120  # seconds until READY, on a busy machine with sanitizers
CALL_LIMIT = 180   # seconds for one call of loractl


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def case(function=None, *, daemon=None):
    def register(f):
        CASES.append(SimpleNamespace(name=f"{f.__module__.split('.')[-1]}.{f.__name__}", run=f, daemon=daemon))
        return f
    return register(function) if function else register


def check(condition, *what):
    if not condition:
        raise Failed(" ".join(str(w) for w in what))


def check_equal(got, wanted, what):
    check(got == wanted, f"{what}: got {got!r}, wanted {wanted!r}")


class Result:
    """What a program left behind: exit status, stdout, stderr."""

    def __init__(self, command, status, out, err):
        self.command, self.status, self.out, self.err = command, status, out, err

    def __str__(self):
        return f"{' '.join(self.command)[:300]}: exit {self.status}, stdout {self.out[:300]!r}, stderr {self.err[:600]!r}"

    def ok(self):
        check(self.status == 0, "failed:", self)
        return self

    def json(self):
        self.ok()
        try:
            return json.loads(self.out)
        except ValueError as e:
            raise Failed(f"not JSON ({e}): {self}") from None

    def refused(self, pattern, status=1):
        """The contract's failure: this status, nothing on stdout, one line on stderr that names the offending thing."""
        check(self.status == status, f"wanted exit {status}:", self)
        check(self.out == "", "stdout is not empty:", self)
        check(self.err.endswith("\n") and self.err.count("\n") == 1, "stderr is not one line:", self)
        check(re.search(pattern, self.err), f"stderr does not match /{pattern}/:", self)
        return self


def call(command, limit=CALL_LIMIT, **options):
    command = [str(c) for c in command]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, stdin=subprocess.DEVNULL, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"still running after {limit} s: {' '.join(command)[:300]}") from None
    return Result(command, done.returncode, done.stdout.decode("utf-8", "strict"), done.stderr.decode("utf-8", "replace"))


def until(condition, limit=20, what="condition"):
    """Polls until condition() is true; returns its value."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < end, f"{what}: not within {limit} s")
        time.sleep(0.05)


def together(functions):
    """Runs the functions at once, one thread each; returns their results in order, raises the first failure."""
    results = [None] * len(functions)

    def run(i):
        try:
            results[i] = functions[i]()
        except BaseException as e:  # handed to the caller below
            results[i] = e
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in results:
        if isinstance(r, BaseException):
            raise r
    return results


SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')


def check_histogram(name, series):
    """series: {labels: value} of the family's samples, labels as (name, value) pairs."""
    buckets = [(float(dict(labels)["le"]), value) for (sample, labels), value in series.items() if sample == name + "_bucket"]
    check(buckets and buckets[-1][0] == float("inf"), f"{name}: no bucket +Inf at the end")
    check(all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(buckets, buckets[1:])), f"{name}: not cumulative: {buckets}")
    check_equal(series.get((name + "_count", ())), buckets[-1][1], f"{name}_count")
    check((name + "_sum", ()) in series, f"{name}_sum is missing")


def parse_metrics(text):
    """Prometheus' text format, strictly: each family in one piece, HELP and TYPE first, no series twice.

    Returns {(name, ((label, value), ...)): number}.
    """
    types, family, series = {}, None, {}
    check(text.endswith("\n"), "the last line does not end")
    lines = text.split("\n")[:-1]
    for before, line in zip([""] + lines, lines):
        words = line.split(" ", 3)
        if words[:2] == ["#", "HELP"]:
            family = words[2]
            check(family not in types and len(words) == 4, f"a second or an empty HELP: {line!r}")
        elif words[:2] == ["#", "TYPE"]:
            check(words[2] == family and before.startswith(f"# HELP {family} "), f"no HELP before {line!r}")
            check(words[3] in ("counter", "gauge", "histogram"), f"no type: {line!r}")
            check((words[3] == "counter") == family.endswith("_total"), f"counters end in _total, no others: {line!r}")
            types[family] = words[3]
        else:
            match = SAMPLE.fullmatch(line)
            check(match, f"not a sample: {line!r}")
            name, labels, number = match.groups()
            ends = ("_bucket", "_sum", "_count") if types.get(family) == "histogram" else ("",)
            check(family in types and name in [family + e for e in ends], f"not of the family {family}: {line!r}")
            key = (name, tuple(re.findall(r'([a-zA-Z0-9_]+)="((?:[^"\\]|\\.)*)"', labels or "")))
            check(key not in series, f"twice: {line!r}")
            series[key] = float(number)
    for name, kind in types.items():
        if kind == "histogram":
            check_histogram(name, {k: v for k, v in series.items() if k[0].startswith(name + "_")})
    return series


class Client:
    """Somebody who runs the client programs in `tools` against a socket; how: of subprocess.Popen."""

    def __init__(self, tools, socket, **how):
        self.tools, self.socket, self.how = tools, socket, how

    def ctl(self, *args, limit=CALL_LIMIT, **options):
        return call([f"{self.tools}/loractl", "--socket", self.socket, *args], limit, **{**self.how, **options})

    def ctl_start(self, *args, program="loractl"):
        """A loractl (or lorabench) that runs beside the case; the caller waits for it or ends it."""
        return subprocess.Popen([f"{self.tools}/{program}", "--socket", self.socket, *map(str, args)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **self.how)

    def generate(self, *args):
        return self.ctl("generate", "--json", *args).json()

    @contextlib.contextmanager
    def load(self, *args):
        """A lorabench in the background, for as long as the block lasts; it has to be alive at its end."""
        p = self.ctl_start("--duration", 1000, *args, program="lorabench")
        try:
            yield p
            check(p.poll() is None, "the load ended early:", p.poll() is not None and p.communicate())
        finally:
            p.kill()
            p.communicate()


class Daemon(Client):
    """One lorad with its own store and socket in `folder`."""

    def __init__(self, build, model, folder, args=(), config=None, program="daemon/lorad", env=None):
        super().__init__(f"{build}/tools", f"{folder}/lorad.sock")
        self.build, self.folder = build, folder
        self.env = dict(os.environ, **env) if env else None
        self.store, self.log = f"{folder}/store", f"{folder}/log"
        self.command = [f"{build}/{program}", "--store", self.store, "--socket", self.socket]
        self.command += ["--model", model] if model else []
        self.command += ["--config", config] if config else []
        self.command += [str(a) for a in args]
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                            env=self.env)
        line = []
        reader = threading.Thread(target=lambda: line.append(self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_LIMIT)
        if line != [b"READY\n"]:
            self.kill()
            raise Failed(f"no READY within {START_LIMIT} s but {line}; its log ends: {self.log_tail()}")
        return self

    def log_tail(self, size=1500):
        if not os.path.exists(self.log):  # on a disk that the case has taken away again
            return []
        with open(self.log, "rb") as f:
            return f.read()[-size:].decode("utf-8", "replace")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def names(self):
        return {a["name"]: a for a in self.ctl("list", "--json").json()}

    def status(self):
        return self.ctl("status", "--json").json()

    def metric(self, name):
        """The sum over the labels of a metric of loractl metrics."""
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", self.ctl("metrics").ok().out, re.M)
        check(values, f"no metric {name}")
        return sum(map(float, values))

    def idle(self):
        """Once nothing runs any more: nothing is left of any request, and the counters agree. Returns the status."""
        def still():
            s = self.status()
            return s if not (s["requests"]["running"] or s["requests"]["waiting"] or s["kv"]["used"] or s["cache"]["loading"]) else None
        s = until(still, what="an idle daemon")
        ends = {k: s["requests"][k] for k in ("finished", "failed", "cancelled", "turned_away")}
        check_equal(sum(ends.values()), s["requests"]["admitted"], f"requests that ended ({ends}), of those admitted")
        check(not any(a["running"] for a in s["adapters"]), "adapters are still held:", s["adapters"])
        check(not any(u["running"] or u["waiting"] for u in s["users"]), "users still have requests:", s["users"])
        check_equal(s["tiers"]["device"]["adapters"], s["cache"]["resident"], "adapters on the device")
        check(bool(s["pool"]["kv"]) == bool(s["kv"]["cached"]) and s["pool"]["kv"] % max(1, s["kv"]["cached"]) == 0, "KV bytes and blocks:", s)
        check(s["pool"]["adapters"] >= s["tiers"]["device"]["bytes"], "adapters take less of the pool than they are:", s)
        parse_metrics(self.ctl("metrics").ok().out)
        return s

    def term(self, limit=10):
        """SIGTERM; exit status 0 within the contract's 10 s (more under sanitizers). Returns what it still wrote on stdout."""
        self.process.send_signal(signal.SIGTERM)
        try:
            rest = self.process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"SIGTERM did not end it within {limit} s: {self.log_tail()}") from None
        check(self.process.returncode == 0, f"exit {self.process.returncode} after SIGTERM: {self.log_tail()}")
        return rest

    def kill(self):
        if self.alive():
            self.process.kill()
        if self.process and not self.process.stdout.closed:
            self.process.communicate()

    def sanitizer_reports(self):
        with open(self.log, "rb") as f:
            return re.findall(r"^.*(?:ERROR: \w+Sanitizer|runtime error:|ThreadSanitizer:).*$", f.read().decode("utf-8", "replace"), re.M)


class World:
    """The programs, the models and the shared daemons; each case gets it with a scratch folder of its own."""

    def __init__(self, options):
        self.build, self.sanitized = os.path.abspath(options.build), options.sanitized and os.path.abspath(options.sanitized)
        self.model, self.hf = os.path.abspath(options.model), options.hf and os.path.abspath(options.hf)
        self.mixes = options.mixes and os.path.abspath(options.mixes)
        self.source = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
        self.root = tempfile.mkdtemp(prefix="lorad-e2e-")
        os.chmod(self.root, 0o711)  # for other users' clients, see user()
        self.shared, self.own, self.scratch = {}, [], None
        self.device = ("--device", options.device) if options.device else ()
        self.exact = options.device in (None, "cpu")  # a row's bits do not follow the rows beside it

    def adapter(self, name):
        return f"{self.source}/tests/adapters/{name}"

    def installed(self, name):
        """Path of the installed file that ends so (`bin/loractl`), in a scratch root made on first use."""
        root = f"{self.root}/installed"
        if not os.path.isdir(root):
            call(["make", "-C", self.build, "-s", "install", f"DESTDIR={root}"]).ok()
        found = [f"{folder}/{f}" for folder, _, files in os.walk(root) for f in files if f"{folder}/{f}".endswith("/" + name)]
        check(found, f"make install installs no {name}")
        return found[0]

    def user(self, d, uid):
        """A client with a real uid of its own, with copies of the programs where it may run them."""
        if os.geteuid() != 0:
            raise Skipped("acting as other users takes root")
        folder = f"{self.root}/public"
        if not os.path.isdir(folder):
            os.mkdir(folder)
            libraries = os.path.dirname(self.installed("libloraclient.so"))
            for path in [self.installed("bin/loractl"), self.installed("bin/lorabench")] + [f"{libraries}/{f}" for f in os.listdir(libraries) if ".so" in f]:
                shutil.copy(path, folder)
                os.chmod(f"{folder}/{os.path.basename(path)}", 0o755)
            os.chmod(folder, 0o755)
        for path, mode in ((self.scratch, 0o755), (d.folder, 0o755), (d.socket, 0o666)):
            os.chmod(path, mode)
        return Client(folder, d.socket, user=uid, group=uid, extra_groups=[], cwd="/", env=dict(os.environ, LD_LIBRARY_PATH=folder))

    @contextlib.contextmanager
    def of_case(self, name):
        """A scratch folder and the case's own daemons, gone when it ends."""
        self.scratch = f"{self.root}/{name}"
        os.makedirs(self.scratch)
        try:
            yield self
            for d in self.own:
                check(not d.sanitizer_reports(), "sanitizer:", d.sanitizer_reports()[:1])
        finally:
            for d in self.own:
                d.kill()
            self.own = []
            shutil.rmtree(self.scratch, ignore_errors=True)

    def daemon(self, *args, model=None, sanitized=False, folder=None, config=None, start=True, **how):
        """A daemon of the case's own; with `folder` of an earlier one it gets that one's store. how: see Daemon."""
        build = self.sanitized if sanitized else self.build
        if not build:
            raise Skipped("no sanitizer build was given")
        folder = folder or tempfile.mkdtemp(dir=self.scratch)
        d = Daemon(build, self.model if model is None else model, folder, (*self.device, *args), config, **how)
        self.own.append(d)
        return d.start() if start else d

    SHARED = {
        # GGUF as users run it; the exact path; the sanitizer build, for what goes wrong
        "gguf": dict(),
        "f32": dict(hf=True, args=("--precision", "f32")),
        "sanitized": dict(sanitized=True, args=("--device-memory", "512M")),
    }

    def shared_daemon(self, kind):
        """A daemon that many cases use, with the three demonstration adapters in its store."""
        d = self.shared.get(kind)
        if d and d.alive():
            return d
        how = self.SHARED[kind]
        if how.get("hf") and not self.hf:
            raise Skipped("no Hugging Face folder was given (--hf)")
        if how.get("sanitized") and not self.sanitized:
            raise Skipped("no sanitizer build was given (--sanitized)")
        folder = tempfile.mkdtemp(prefix=kind + "-", dir=self.root)
        d = Daemon(self.sanitized if how.get("sanitized") else self.build, self.hf if how.get("hf") else self.model, folder,
                   (*self.device, *how.get("args", ())))
        d.start()
        self.shared[kind] = d
        for name in ("json", "pirate", "list"):
            d.ctl("import", "--name", name, self.adapter(name)).ok()
        return d

    def end(self):
        """Ends the shared daemons; returns what was wrong with how they ended."""
        wrong = []
        for kind, d in self.shared.items():
            try:
                check(d.alive(), f"it died: {d.log_tail()}")
                d.term(30 if self.SHARED[kind].get("sanitized") else 10)
                check(not d.sanitizer_reports(), f"sanitizer: {d.sanitizer_reports()[:1]}")
            except Failed as e:
                wrong.append(f"daemon {kind}: {e}")
                d.kill()
        shutil.rmtree(self.root, ignore_errors=True)
        return wrong

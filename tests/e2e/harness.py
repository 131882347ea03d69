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


class Daemon:
    """One lorad with its own store and socket in `folder`."""

    def __init__(self, build, model, folder, args=(), config=None, program="daemon/lorad", env=None):
        self.build, self.folder = build, folder
        self.env = dict(os.environ, **env) if env else None
        self.store, self.socket, self.log = f"{folder}/store", f"{folder}/lorad.sock", f"{folder}/log"
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
        with open(self.log, "rb") as f:
            return f.read()[-size:].decode("utf-8", "replace")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def ctl(self, *args, limit=CALL_LIMIT, **options):
        return call([f"{self.build}/tools/loractl", "--socket", self.socket, *args], limit, **options)

    def ctl_start(self, *args):
        """A loractl that runs beside the case; the caller waits for it or ends it."""
        return subprocess.Popen([f"{self.build}/tools/loractl", "--socket", self.socket, *map(str, args)],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def generate(self, *args):
        return self.ctl("generate", "--json", *args).json()

    def names(self):
        return {a["name"]: a for a in self.ctl("list", "--json").json()}

    def status(self):
        return self.ctl("status", "--json").json()

    def metric(self, name):
        """The sum over the labels of a metric of loractl metrics."""
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", self.ctl("metrics").ok().out, re.M)
        check(values, f"no metric {name}")
        return sum(map(float, values))

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

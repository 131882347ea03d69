# SPDX-License-Identifier: MIT
"""What the benchmarks of a daemon share: stores of adapters, a lorad of one's own, lorabench, rows of a table."""
import glob, json, os, re, select, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = "/var/tmp"  # a disk: the pager reads with O_DIRECT
POOL_PAGE = 1 << 16
SMOLLM = os.path.expanduser("~/.cache/lorad/SmolLM2-135M-Instruct.Q4_1.gguf")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as after an error: daemons end, stores go


class Control:
    """A connection to the control socket."""

    def __init__(self, path):
        self.peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.connect(path)

    def call(self, method, **parameters):
        self.peer.sendall(json.dumps({"method": "io.lorad." + method, "parameters": parameters}).encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            piece = self.peer.recv(1 << 20)
            if not piece:
                raise RuntimeError("the daemon closed the control connection")
            answer += piece
        answer = json.loads(answer[:-1])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer}")
        return answer["parameters"]


class Store:
    """A folder with the adapters that `store make` writes, imported; gone at the end."""

    def __init__(self, build, model, n, *kind, keep=False):
        """keep: the folders stay, too."""
        self.build, self.model, self.n, self.keep = build, model, n, keep
        self.scratch = tempfile.TemporaryDirectory(prefix="lorad-bench-", dir=SCRATCH)
        self.path, self.folders = self.scratch.name + "/store", self.scratch.name + "/folders"
        if n:
            self.fill(n, kind)

    def fill(self, n, kind):
        subprocess.run([HERE + "/store", "make", self.folders, "--adapters", str(n), *kind], check=True)
        with Daemon(self) as daemon:
            subprocess.run([self.build + "/tools/loractl", "--socket", daemon.socket, "import", *sorted(glob.glob(self.folders + "/*"))],
                           check=True, stdout=subprocess.DEVNULL)
            sizes = [a["packed_bytes"] or a["bytes"] for a in daemon.control().call("List")["adapters"]]  # of the image that is used
        if not self.keep:
            shutil.rmtree(self.folders)
        self.bytes = sum(sizes)
        self.pool_bytes = sum(-(-size // POOL_PAGE) * POOL_PAGE for size in sizes)  # what they take in memory

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.scratch.cleanup()


class Daemon:
    """A lorad over a store, until the end of the block."""

    def __init__(self, store, *options, threads=None):
        self.build, self.store = store.build, store
        self.scratch = tempfile.TemporaryDirectory(prefix="lorad-bench-", dir=SCRATCH)
        os.chmod(self.scratch.name, 0o755)  # for other users' clients; the sockets have modes of their own
        self.socket = self.scratch.name + "/s"
        self.log = open(self.scratch.name + "/log", "w+")
        self.process = subprocess.Popen(
            [store.build + "/daemon/lorad", "--model", store.model, "--store", store.path, "--socket", self.socket, "--device", "cpu",
             "--threads", str(threads or os.cpu_count()), *map(str, options)], stdout=subprocess.PIPE, stderr=self.log)
        ready = select.select([self.process.stdout], [], [], 300)[0] and self.process.stdout.readline()
        if ready != b"READY\n":
            self.process.kill()
            sys.exit(f"lorad does not become ready with {' '.join(map(str, options))}: {self.said()}")

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.status = self.process.wait()
        self.log.close()
        self.scratch.cleanup()

    def control(self):
        return Control(self.socket + ".control")

    def command(self, adapters, clients, prompt, gen, *options):
        """lorabench's command line; an `--adapters` that names the first N, or a pattern."""
        return [self.build + "/tools/lorabench", "--socket", self.socket, "--adapters", str(adapters), "--clients", str(clients),
                "--prompt-tokens", str(prompt), "--gen-tokens", str(gen), "--json", *map(str, options)]

    def bench(self, *words, **more):
        run = subprocess.run(self.command(*words), capture_output=True, text=True, **more)
        if run.returncode:
            sys.exit(run.stderr + self.said())
        return json.loads(run.stdout)

    def adapters(self):
        run = subprocess.run([self.build + "/tools/loractl", "--socket", self.socket, "list", "--json"], capture_output=True, check=True)
        return json.loads(run.stdout)

    def read_all(self):
        """Have all adapters in memory, as far as they fit."""
        control = self.control()
        for adapter in self.adapters():
            control.call("Prefetch", name=adapter["name"])

    def memory_kib(self, field):
        return int(re.search(field + r":\s*(\d+) kB", open(f"/proc/{self.process.pid}/status").read())[1])

    def own_memory_kib(self, pool_bytes):
        """Resident and anonymous, but for the pool, which fills up by and by."""
        total = size = 0
        for line in open(f"/proc/{self.process.pid}/smaps"):
            key, value, *_ = line.split()
            if key == "Size:":
                size = int(value)
            elif key == "Anonymous:" and size * 1024 < pool_bytes:
                total += int(value)
        return total


class Table:
    """Rows: what was measured beside what is asked, and the same as JSON."""

    def __init__(self, title, as_json):
        self.rows, self.json, self.title = [], as_json, title
        if not as_json:
            print(title, flush=True)

    def row(self, section, what, value, unit, asked=None, least=None, most=None, note=""):
        """value beside the bound that is asked of it, if any; note: the figures it came from."""
        held = None if least is None and most is None else (least is None or value >= least) and (most is None or value <= most)
        asked = asked or (f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else "")
        self.rows.append(dict(section=section, what=what, value=value, unit=unit, asked=asked, held=held, note=note))
        if not self.json:
            verdict = {None: "", True: "yes", False: "NO"}[held]
            print(f"{section:10} {what:58} {value:>10.4g} {unit:12} {asked:>12} {verdict:4} {note}".rstrip(), flush=True)

    def end(self):
        if self.json:
            print(json.dumps(dict(title=self.title, rows=self.rows), indent=1))


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} processors, {time.strftime('%d %b %Y')}"


def spread(values, digits=3):
    return f"{statistics.median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""stall.py BUILD MODEL ADAPTER...: does a page-in stall those who decode?

One client decodes on the bare base, 1,000 tokens; in every other run adapters are paged in all the while, one after the
other (`--rate` a second), into a cache that holds two of them, so that each is read from the disk. Prints p50 and p99 of
the time between tokens of each pair of runs, and the medians of the differences. Standard library only."""
import argparse, json, os, select, socket, statistics, subprocess, sys, tempfile, threading, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("build")
parser.add_argument("model")
parser.add_argument("adapters", nargs="+", help="PEFT folders, at least 4 of about the same size")
parser.add_argument("--pairs", type=int, default=5)
parser.add_argument("--tokens", type=int, default=1000)
parser.add_argument("--rate", type=float, default=20, help="page-ins a second")
parser.add_argument("--threads", default="2")
args = parser.parse_args()

scratch = tempfile.TemporaryDirectory(prefix="lorad-stall-", dir="/var/tmp")
sock = scratch.name + "/s"
size = max(sum(os.path.getsize(os.path.join(a, f)) for f in os.listdir(a)) for a in args.adapters)
daemon = subprocess.Popen([f"{args.build}/daemon/lorad", "--model", args.model, "--store", scratch.name + "/store", "--socket", sock,
                           "--threads", args.threads, "--host-cache", str(2 * size + (1 << 20))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def call(peer, method, **parameters):
    peer.sendall(json.dumps({"method": "io.lorad." + method, "parameters": parameters}).encode() + b"\0")
    answer = b""
    while not answer.endswith(b"\0"):
        answer += peer.recv(65536) or sys.exit("the daemon closed the control connection")
    return json.loads(answer[:-1])


def page_in(peer, names, until, count):
    i, due = 0, time.monotonic()
    while not until.is_set():
        call(peer, "Prefetch", name=names[i % len(names)])
        i, due = i + 1, due + 1 / args.rate
        until.wait(max(0, due - time.monotonic()))
    count.append(i)


def run(peer, names, loading):
    until, count, before = threading.Event(), [], call(peer, "Status")["parameters"]["pager"]
    thread = threading.Thread(target=page_in, args=(peer, names, until, count))
    if loading:
        thread.start()
    out = subprocess.run([f"{args.build}/tools/lorabench", "--socket", sock, "--adapters", "0", "--clients", "1", "--prompt-tokens", "16",
                          "--gen-tokens", str(args.tokens), "--requests", "1", "--json"], capture_output=True, check=True).stdout
    if loading:
        until.set()
        thread.join()
    loads = call(peer, "Status")["parameters"]["pager"]["loads"] - before["loads"]
    return json.loads(out), loads


try:
    select.select([daemon.stdout], [], [], 60)[0] and daemon.stdout.readline() == b"READY\n" or sys.exit("lorad did not become ready")
    names = [f"a{i}" for i in range(len(args.adapters))]
    for name, path in zip(names, args.adapters):
        subprocess.run([f"{args.build}/tools/loractl", "--socket", sock, "import", "--name", name, path], check=True, stdout=subprocess.DEVNULL)
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(sock + ".control")
    run(peer, names, loading=False)  # warm-up
    differences = {"p50": [], "p99": []}
    for pair in range(args.pairs):
        quiet, _ = run(peer, names, loading=False)
        busy, loads = run(peer, names, loading=True)
        for q in differences:
            differences[q].append(busy[f"itl_{q}_ms"] - quiet[f"itl_{q}_ms"])
        print(f"pair {pair + 1}: alone p50 {quiet['itl_p50_ms']:.2f} p99 {quiet['itl_p99_ms']:.2f} ms; with {loads} page-ins of {size / 1e6:.1f} MB "
              f"p50 {busy['itl_p50_ms']:.2f} p99 {busy['itl_p99_ms']:.2f} ms")
    for q, values in differences.items():
        print(f"{q} with minus alone: median {statistics.median(values):.2f} ms ({min(values):.2f} to {max(values):.2f})")
finally:
    daemon.terminate()
    daemon.wait()

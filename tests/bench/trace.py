#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""trace.py --adapters N --rate R --duration S [OPTION]...: writes a trace for lorabench --trace to standard output.

Arrivals: pauses of a gamma distribution with mean 1 / rate and coefficient of variation --cv (1: Poisson). Adapters: index
floor(N u^(1/A)) with --power A, or the k-th in proportion to 1 / k^A with --zipf A, else evenly. With --drift D the favourite
moves on by one index every D seconds. Lengths are uniform in the ranges of --prompt and --gen. One seed, one trace.

What lorabench draws by itself needs no trace; this is for what it does not: lengths that vary, favourites that change, and
one load for several programs, such as a simulation of the cache.
"""
import argparse
import itertools
import random
import sys


def range_of(text):
    low, _, high = text.partition("-")
    low, high = int(low), int(high or low)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"{text}: no range of numbers from 1 on")
    return low, high


def positive(text):
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1000000")
    return value


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, required=True, metavar="N")
    parser.add_argument("--rate", type=positive, required=True, metavar="R")
    parser.add_argument("--duration", type=positive, required=True, metavar="S")
    parser.add_argument("--cv", type=positive, default=1, metavar="C")
    law = parser.add_mutually_exclusive_group()
    law.add_argument("--power", type=positive, metavar="A")
    law.add_argument("--zipf", type=positive, metavar="A")
    parser.add_argument("--drift", type=positive, metavar="D")
    parser.add_argument("--prompt", type=range_of, default=(8, 512), metavar="LOW-HIGH")
    parser.add_argument("--gen", type=range_of, default=(8, 512), metavar="LOW-HIGH")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    options = parser.parse_args()
    if options.adapters < 0:
        parser.error(f"--adapters {options.adapters}: must be 0 or more")
    return options


def chooser(options, rng):
    """A function that draws an index from 0 to N - 1."""
    n = options.adapters
    if options.power:
        return lambda: min(int(n * rng.random() ** (1 / options.power)), n - 1)
    weights = list(itertools.accumulate((k + 1) ** -(options.zipf or 0) for k in range(n)))
    return lambda: rng.choices(range(n), cum_weights=weights)[0]


def requests(options):
    """Yields (seconds, adapter, prompt tokens, answer tokens)."""
    rng = random.Random(options.seed)
    choose = chooser(options, rng) if options.adapters else None
    shape = options.cv ** -2
    at = 0.0
    while at < options.duration:
        moved = int(at / options.drift) if options.drift else 0
        yield at, (choose() + moved) % options.adapters if choose else "-", rng.randint(*options.prompt), rng.randint(*options.gen)
        at += rng.gammavariate(shape, 1 / (shape * options.rate))


def main():
    options = parse()
    print("# trace.py", *sys.argv[1:])
    print("# seconds adapter prompt-tokens answer-tokens")
    for at, adapter, prompt, answer in requests(options):
        print(f"{at:.6f} {adapter} {prompt} {answer}")


if __name__ == "__main__":
    main()

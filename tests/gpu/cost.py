# SPDX-License-Identifier: MIT
"""
What the CUDA backend's kernels move and compute, launch by launch: used by cost-model, check-counts and kernel-report.

A Launch says how a kernel is started (grid, threads, shared bytes) and, for each of its operands (a Stream), in bytes:
  least    what the op cannot do without: every number once
  read     different bytes touched by reads; written: by writes (in 32-byte sectors, as they lie)
  asked    what its warps ask for, in whole sectors, before any cache
  l2       what of that reaches L2; less than asked only where an SM's L1 surely has it (asked where not given)
check-counts holds all of these but l2 against what the simulator counts. Constants name the source they come from.
"""
from dataclasses import dataclass, field

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 32
WARP = 32


def up(n, to):
    return -(-n // to) * to


def parts(n, of):
    return -(-n // of)


# ---- hardware ----

@dataclass
class Limits:  # of a compute capability: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
    threads: int    # resident on an SM
    shared: int     # bytes of an SM
    blocks: int     # resident on an SM
    registers: int = 65536


LIMITS = {
    80: Limits(2048, 164 * KIB, 32),
    86: Limits(1536, 100 * KIB, 16),
    89: Limits(1536, 100 * KIB, 24),
    90: Limits(2048, 228 * KIB, 32),
    100: Limits(2048, 228 * KIB, 32),
    120: Limits(1536, 100 * KIB, 24),
}


def blocks_per_sm(arch, registers, threads, shared):
    """How many fit. Registers go to warps 256 at a time; the system takes 1 KiB of shared memory for each block."""
    limits = LIMITS[arch]
    warps = parts(threads, WARP)
    return min(limits.blocks, limits.threads // (warps * WARP), limits.registers // (up(registers * WARP, 256) * warps),
               limits.shared // (up(shared, 128) + KIB))


@dataclass
class Gpu:  # data sheets; *: assumptions of ours, see docs/CUDA-COST.md
    name: str
    arch: int
    sms: int
    bandwidth: float   # bytes/s of device memory
    tensor: float      # flop/s, bf16 dense, f32 sums
    plain: float       # flop/s, f32
    l2: int            # bytes
    l2_bandwidth: float  # *
    pcie: float        # bytes/s, one way: 25 and 50 GB/s of a x16's 32 and 64 *
    latency: float     # s, of device memory under load *


GPUS = [
    Gpu("A100-80", 80, 108, 2.039e12, 312e12, 19.5e12, 40 * MIB, 5.0e12, 25e9, 0.65e-6),
    Gpu("H200", 90, 132, 4.8e12, 989e12, 67e12, 50 * MIB, 5.6e12, 50e9, 0.75e-6),
    Gpu("RTX 4090", 89, 128, 1.008e12, 165e12, 82.6e12, 72 * MIB, 5.0e12, 25e9, 0.6e-6),
]


# ---- models ----

@dataclass
class Model:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    e: int
    ffn: int
    vocab: int

    def linears(self):
        """name -> (outputs, inputs) of a layer"""
        q, kv, d = self.heads * self.e, self.kv_heads * self.e, self.hidden
        return {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (self.ffn, d), "up": (self.ffn, d),
                "down": (d, self.ffn)}

    def kv_token_bytes(self):
        return 2 * 2 * self.kv_heads * self.e * self.layers


LLAMA_8B = Model("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)
SMOLLM2 = Model("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152)
LLAMA_7B = Model("Llama-7B", 32, 4096, 32, 32, 128, 11008, 32000)

# bytes of a number as its file has it
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "Q8_0": 34 / 32, "Q4_0": 18 / 32, "Q4_1": 20 / 32}


# ---- launches ----

@dataclass
class Stream:
    least: float = 0
    read: float = 0
    written: float = 0
    asked: float = 0
    l2: float = None
    cold: bool = False  # weights, KV, adapters: always from device memory. Else a step's own numbers.

    def at_l2(self):
        return self.asked if self.l2 is None else self.l2


@dataclass
class Launch:
    kernel: str
    grid: tuple
    threads: int
    shared: int
    streams: dict
    mma: int = 0           # instructions m16n8k16 of a warp, 4,096 flops each
    plain: float = 0       # flops of other instructions
    blocks: int = 1        # of an SM, that __launch_bounds__ asks ptxas for
    in_flight: float = 0   # bytes of cold streams that a block keeps under way; 0: not bound by them
    flops: float = None    # what the op needs at least; None: what is computed
    tensor: float = None   # flops on tensor cores that are not our mma (cuBLAS)

    def tensor_flops(self):
        return 4096 * self.mma if self.tensor is None else self.tensor


def once(n, **more):
    return Stream(least=n, read=n, asked=n, **more)


def output(n, **more):
    return Stream(least=n, written=n, asked=n, **more)


# activate.cu: to_bf16
def activate(n, cols):
    width = up(cols, 8)
    pieces = n * width // 4
    return [Launch("to_bf16", (parts(pieces, 256), 1, 1), 256, 0,
                   {"x": once(4 * n * cols), "y": output(2 * n * width)}, plain=n * cols)]


# norm.cu: the row is read twice, the second time from L1
def rms_norm(n, d):
    team, rows = (32, 8) if d <= 1024 else (256, 1)  # SHORT_ROW
    return [Launch(f"rms_norm<{team}, 4>", (parts(n, rows), 1, 1), 256, 0 if team == 32 else 32,
                   {"x": Stream(4 * n * d, 4 * n * d, 0, 8 * n * d, 4 * n * d),
                    "gain": Stream(4 * d, 4 * d, 0, 4 * n * d), "y": output(4 * n * d)}, plain=5 * n * d)]


# embed.cu
def embed(dtype, cols, n):
    numbers = n * cols
    if dtype in ("F32", "BF16"):
        size = DTYPE_BYTES[dtype]
        name, table = f"embed<CUDA_W_{dtype}>", once(size * numbers, cold=True)
    else:  # of each chunk of 128 columns: codes, 64 bytes at a stretch, and of scales and minimums 16 of a sector
        chunk = (128 if dtype == "Q8_0" else 64) + SECTOR * (2 if dtype == "Q4_1" else 1)
        name, table = f"embed<CUDA_W_{dtype}>", Stream(DTYPE_BYTES[dtype] * numbers, n * parts(cols, 128) * chunk, 0,
                                                      n * parts(cols, 128) * chunk, cold=True)
    return [Launch(name, (n, 1, 1), 128, 0, {"weight": table, "x": output(4 * numbers)})]


# quant.h: CUDA_CHUNK_BYTES; weight.c: tiles of 16 rows, chunks of 128 columns
CHUNK_BYTES = {"Q8_0": 2048 + 128, "Q4_0": 1024 + 128, "Q4_1": 1024 + 256}
SKINNY_WARPS, SKINNY_SHARED = 8, 48 * KIB  # skinny.cu: WARPS, SHARED
SKINNY_ROWS = 64   # device.h: CUDA_SKINNY_ROWS
PANEL_BYTES = 64 * MIB  # device.h: CUDA_PANEL_BYTES


def packed_bytes(dtype, rows, cols):
    return parts(rows, 16) * parts(cols, 128) * CHUNK_BYTES[dtype]


def skinny(dtype, rows, cols, n, accumulate):
    # skinny.cu: choose_groups(), ring
    groups, tiles = (1, 1) if n <= 8 else (2, 2) if n <= 16 else (4, 2) if n <= 32 else (8, 2)
    slot = tiles * CHUNK_BYTES[dtype]
    stages = min(SKINNY_SHARED // (SKINNY_WARPS * slot), 4)
    blocks, chunks = parts(parts(rows, 16), tiles), parts(cols, 128)
    sums = min(tiles * groups, SKINNY_WARPS) * SKINNY_WARPS * WARP * 16
    weight = packed_bytes(dtype, rows, cols)
    asked = blocks * tiles * chunks * CHUNK_BYTES[dtype]  # where there is no other tile, the last one once more
    # x: 16 bytes of each 32 a load; the load of the other half comes next. A group without rows reads the last one.
    loaded = sum(min(max(n - 8 * g, 1), 8) for g in range(groups))
    x = blocks * loaded * 2 * (cols + (32 if cols % 128 else 0))  # instead of columns behind the last the first 32
    y = 4 * n * rows
    return Launch(f"multiply_skinny<CUDA_W_{dtype}, {groups}, {tiles}>", (blocks, 1, 1), SKINNY_WARPS * WARP,
                  max(sums, SKINNY_WARPS * stages * slot),
                  {"weight": Stream(DTYPE_BYTES[dtype] * rows * cols, weight, 0, asked, cold=True),
                   "x": Stream(2 * n * cols, 2 * n * cols, 0, 2 * x, x),
                   "y": Stream(y, y if accumulate else 0, y, 2 * y if accumulate else y)},
                  mma=blocks * tiles * chunks * groups * 8, plain=2 * blocks * tiles * chunks * 16 * 128,
                  in_flight=min(SKINNY_WARPS * stages, chunks) * slot, flops=2 * n * rows * cols)


def cublas(rows, cols, n, accumulate, size, panel=False):
    """Assumed: one launch that reaches its bound, of memory or tensor cores; L2 never holds it up."""
    width, y = up(cols, 8), 4 * n * rows
    weight = size * rows * width
    flops = 2 * n * rows * cols
    return Launch("cuBLAS", (1, 1, 1), 0, 0,
                  {"weight": once(weight, cold=True), "x": once(size * n * width),
                   "y": Stream(y, y if accumulate else 0, y, 2 * y if accumulate else y)},
                  tensor=flops if size == 2 else 0, plain=flops if size == 4 else 0)


# quant.cu
def decode_panel(dtype, rows, cols):
    packed, dense = packed_bytes(dtype, rows, cols), 2 * rows * up(cols, 8)
    return Launch(f"decode_panel<CUDA_W_{dtype}>", (parts(rows, 16), parts(parts(cols, 128), 8), 1), 256,
                  8 * CHUNK_BYTES[dtype],
                  {"weight": Stream(DTYPE_BYTES[dtype] * rows * cols, packed, 0, packed, cold=True),
                   "panel": Stream(0, 0, dense, dense, cold=True)}, plain=2 * rows * cols, flops=0,
                  blocks=4, in_flight=8 * CHUNK_BYTES[dtype])  # blocks: as kernel-report says, at least


# matmul.c
def matmul(dtype, rows, cols, n, accumulate=False):
    if dtype not in CHUNK_BYTES:
        return [cublas(rows, cols, n, accumulate, DTYPE_BYTES[dtype])]
    if n <= SKINNY_ROWS:
        return [skinny(dtype, rows, cols, n, accumulate)]
    ret, each = [], PANEL_BYTES // (2 * up(cols, 8)) // 16 * 16
    for first in range(0, rows, each):
        m = min(each, rows - first)
        product = cublas(m, cols, n, accumulate, 2)
        product.streams["weight"].least = 0  # the panel: it was counted as weights
        ret += [decode_panel(dtype, m, cols), product]
    return ret


# lora.h, lora-shrink.cu, lora-expand.cu
LORA_WARPS, LORA_SPLITS, LORA_SPLIT_ROWS, LORA_RANKS, TILE = 4, 8, 4096, 32, 64
LORA_PANEL = 512


def lora_planes(rows):
    return LORA_SPLITS if rows <= LORA_SPLIT_ROWS else 1


def lora_stride(numbers, size):
    return up(numbers * size, 64)


def lora_shrink(inputs, rank, segments, rows, size=2):
    """Of 16-bit adapters: `segments` of `rows` rows each."""
    planes = lora_planes(segments * rows)
    columns = up(parts(inputs, LORA_SPLITS), 32)
    full = inputs // 32 * 32
    tiles = parts(rows, TILE)
    a = mma = loaded = 0  # rows of A that are asked for, rows of x
    for first in range(0, rows, TILE):
        n = min(TILE, rows - first)
        passes, groups = (1, 1) if n <= 8 else (parts(n, 32), 4)
        for rank_first in range(0, rank, LORA_RANKS):
            ranks = min(LORA_RANKS, rank - rank_first)
            m = 1 if ranks <= 16 else 2
            # eight rows a load; where there are none the last one
            a += passes * sum(min(max(ranks - 8 * i, 1), 8) for i in range(2 * m))
            deep = 4 // m if groups == 1 else 1
            for start in range(0, inputs, columns):
                end = min(start + columns, full)
                steps = sum(parts(end - at, deep * 128) * deep for at in range(start, min(end, start + 128), 32))
                steps += start <= full < min(start + columns, inputs)
                mma += passes * groups * m * steps * 2
            loaded += sum(min(max(n - 32 * p - 8 * g, 1), 8) for p in range(passes) for g in range(groups))
    stride = lora_stride(inputs, size)
    z = 4 * planes * segments * rows * rank
    # under way: the columns of a block's piece, but no more than `deep` steps of 32 for each warp
    deep = 1 if rows > 8 else 4 if rank <= 16 else 2
    ahead = min(columns, deep * LORA_WARPS * 32) * min(rank, LORA_RANKS) * size
    return [Launch("lora_shrink<false>", (segments * tiles, planes, min(parts(rank, LORA_RANKS), 16)),
                   LORA_WARPS * WARP, LORA_WARPS * TILE * LORA_RANKS * 4,
                   {"adapter": Stream(segments * rank * inputs * size, segments * rank * stride, 0,
                                      segments * a * stride, cold=True),
                    "x": Stream(2 * segments * rows * inputs, 2 * segments * rows * inputs, 0,
                                2 * segments * loaded * inputs),
                    "scratch": Stream(4 * segments * rows * rank, 0, z, z)},
                   mma=segments * mma, blocks=4, in_flight=ahead, flops=2 * segments * rows * rank * inputs)]


def lora_expand(outputs, rank, segments, rows, size=2):
    planes, panels = lora_planes(segments * rows), parts(outputs, LORA_PANEL)
    tiles = parts(rows, TILE)
    b = z = mma = 0  # rows of B that are asked for, numbers of z
    for first in range(0, rows, TILE):
        n = min(TILE, rows - first)
        few = n <= 16
        passes = parts(n, 32)
        b += passes * rank
        # a pass over 512 columns stages z once where rows are few, else once for each 256
        halves = panels if few else parts(outputs, 256)
        z += n * rank * halves
        mma += passes * parts(rank, 16) * 16 * (4 * (2 * panels) if few else 2 * 4 * halves)
    stride, y = lora_stride(outputs, size), 4 * segments * rows * outputs
    return [Launch("lora_expand<false>", (segments * tiles, panels, 1), LORA_WARPS * WARP, 2 * 32 * (64 + 8) * 2,
                   {"adapter": Stream(segments * rank * outputs * size, segments * rank * stride, 0,
                                      segments * b * stride, cold=True),
                    "scratch": Stream(4 * segments * rows * rank, 4 * planes * segments * rows * rank, 0,
                                      4 * planes * segments * z),
                    "y": Stream(y, y, y, 2 * y)},
                   mma=segments * mma, blocks=3, flops=2 * segments * rows * rank * outputs,
                   in_flight=LORA_WARPS * (2 if rows <= 16 else 1) * min(rank, 16) * 64 * size)]


# rope.cu
def rope(n, heads, e):
    x = 4 * n * heads * e
    return [Launch("rope<4>", (n, 1, 1), 256, e // 2 * 8,
                   {"x": Stream(x, x, x, 2 * x), "inv_freq": Stream(2 * e, 2 * e, 0, 2 * e * n)},
                   plain=3 * n * heads * e)]


# kv.cu
def kv_write(n, kv_heads, e):
    numbers = n * kv_heads * e
    twice = Stream(4 * numbers, 4 * numbers, 0, 8 * numbers, 4 * numbers)  # each load takes 16 bytes of 32
    return [Launch("kv_write<true, 8>", (n, 1, 1), 128, 0,
                   {"k": twice, "v": twice, "kv": output(2 * 2 * numbers, cold=True)})]


def kv_copy(n, size):
    return [Launch("kv_copy", (n, parts(size // 16, 1024), 1), 256, 0,
                   {"kv": once(n * size, cold=True), "to": output(n * size, cold=True)}, blocks=4,
                   in_flight=256 * 4 * 16)]


# attention-decode.cu: split_of(); device.h: CUDA_SPLIT_MAX, CUDA_SPLIT_MIN
def split_of(positions):
    return max(up(parts(positions, 64), 16), 128)


# attention.h: attention_plan()
def attention_plan(e, number, group):
    per_piece = 16 // number
    pieces = parts(e, per_piece)
    row_bytes, tokens, slots = (pieces | 1) * 16, 16 if pieces > 32 else 32, 2
    small = (pieces * per_piece + 5 * WARP + 4) * group * 4
    while slots < 8 and 2 * slots * tokens * row_bytes <= 38 * KIB:
        slots *= 2
    return tokens, slots, small + max(group * 128 * per_piece * 4, slots * tokens * row_bytes)


# attention-decode.cu: n sequences of one row, which see so many positions
def attention_decode(heads, kv_heads, e, n, positions):
    of_head = heads // kv_heads
    group = 1 if of_head == 1 else 2 if of_head == 2 else 4 if of_head <= 4 else 8
    groups = parts(of_head, group)
    tokens, slots, shared = attention_plan(e, 2, group)
    split = split_of(positions)
    splits, launched = parts(positions, split), min(parts(positions, 128), 64)  # some of those exit at once
    kv, q = n * positions * 2 * 2 * kv_heads * e, 4 * n * heads * e
    record = 4 * n * heads * (e + 2) * splits if splits > 1 else 0
    # floats of a record are taken 32 lanes at a time, wherever a sector begins; its last two one by one
    records = n * heads * splits
    skewed = sum(i * (e + 2) % 8 != 0 for i in range(records)) * (e // 32) * SECTOR
    record_asked = records * (4 * e + 2 * SECTOR) + skewed if splits > 1 else 0
    streams = {"kv": Stream(kv, kv, 0, groups * kv, cold=True), "q": Stream(q, q, 0, q * splits)}
    streams["work" if splits > 1 else "y"] = Stream(0, 0, record, record_asked) if splits > 1 else output(q)
    ret = [Launch(f"decode<short unsigned int, {group}>", (n, kv_heads * groups, launched), 128, shared, streams,
                  plain=4 * n * positions * kv_heads * groups * group * e, blocks=3 if group > 4 else 4,
                  in_flight=(slots - 1) * tokens * e * 2, flops=4 * n * positions * heads * e)]
    if splits > 1:
        ret.append(Launch("combine", (n, heads, 1), 64, 4 * launched,
                          {"work": Stream(0, record, 0, records * (4 * e + 5 * SECTOR) + skewed), "y": output(q)},
                          plain=2 * n * heads * e * splits, flops=0))
    return ret


# attention-prefill.cu: one sequence, `rows` rows behind `before` positions
def attention_prefill(heads, kv_heads, e, rows, before=0):
    wide = next(w for w in (64, 80, 96, 128, 256) if e <= w)
    keys = 64 if wide <= 64 else 32 if wide <= 128 else 16
    mma = asked = scores = 0
    for first in range(0, rows, TILE):
        end_row = min(first + TILE, rows)
        asked += before + end_row
        for warp in range(first, end_row, 16):
            tiles = parts(before + min(warp + 16, end_row), keys)  # of keys, that one of the warp's rows sees
            mma += tiles * 4 * (wide // 16) * (keys // 16)
            scores += tiles * keys * 16
    positions = before + rows
    seen = sum(before + i + 1 for i in range(rows))
    numbers = rows * heads * e
    kv = positions * 2 * 2 * kv_heads * e
    # softmax: scale, subtract, exponential, largest, sum of each score
    return [Launch(f"prefill_mma<{wide}>", (heads, parts(rows, TILE), 1), 128, 4 * keys * (wide * 2 // 16 | 1) * 16,
                   {"kv": Stream(kv, kv, 0, heads * asked * 2 * 2 * e, cold=True), "q": once(4 * numbers),
                    "y": Stream(4 * numbers, 0, 4 * numbers, 8 * numbers)},
                   mma=heads * mma, plain=5 * heads * scores, blocks=2 if wide > 128 else 3,
                   flops=4 * seen * heads * e, in_flight=2 * keys * e * 2)]


# swiglu.cu
def swiglu(n, width):
    x = 4 * n * width
    return [Launch("swiglu<4>", (parts(n * width, 1024), 1, 1), 256, 0,
                   {"gate": once(x), "up": once(x), "y": output(x)}, plain=6 * n * width)]


# scale.cu: a segment and a vector for each row
def row_scale(n, width):
    x = 4 * n * width
    return [Launch("row_scale", (n, parts(width, 512), 1), 128, 0,
                   {"adapter": once(x, cold=True), "y": Stream(x, x, x, 2 * x)}, plain=n * width)]


# sample.cu: greedy goes over the logits twice
def sample(n, vocab):
    x = 4 * n * vocab
    return [Launch("sample", (n, 1, 1), 512, 20624, {"logits": Stream(x, x, 0, 2 * x)}, plain=10 * n * vocab)]


# ---- steps ----

@dataclass
class Adapters:  # `n` of them on equal shares of the rows
    n: int
    rank: int
    targets: tuple
    size: float = 2

    def bytes(self, model):
        linears = model.linears()
        return model.layers * self.size * self.rank * sum(sum(linears[t]) for t in self.targets)


QV = ("q", "v")
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def step(model, dtype, rows, context, prefill=False, adapters=None):
    """[(op, Launch)] in order of daemon/model/step.c. Decodes: `rows` sequences that see `context` positions each."""
    m, ret, linears = model, [], model.linears()
    outputs = 1 if prefill else rows

    def add(op, launches):
        ret.extend((op, launch) for launch in launches)

    def multiply(names, inputs):
        if dtype != "F32":
            add("activate", activate(rows, inputs))
        for name in names:
            out, cols = linears[name]
            add("matmul", matmul(dtype, out, cols, rows, name in ("o", "down")))
            if adapters and name in adapters.targets:
                add("lora_shrink", lora_shrink(cols, adapters.rank, adapters.n, rows // adapters.n))
        for name in names:
            if adapters and name in adapters.targets:
                add("lora_expand", lora_expand(linears[name][0], adapters.rank, adapters.n, rows // adapters.n))

    add("embed", embed(dtype, m.hidden, rows))
    for _ in range(m.layers):
        add("rms_norm", rms_norm(rows, m.hidden))
        multiply(("q", "k", "v"), m.hidden)
        add("rope", rope(rows, m.heads, m.e) + rope(rows, m.kv_heads, m.e))
        add("kv_write", kv_write(rows, m.kv_heads, m.e))
        add("attention", attention_prefill(m.heads, m.kv_heads, m.e, rows, context) if prefill else
            attention_decode(m.heads, m.kv_heads, m.e, rows, max(context, 1)))
        multiply(("o",), m.heads * m.e)
        add("rms_norm", rms_norm(rows, m.hidden))
        multiply(("gate", "up"), m.hidden)
        add("swiglu", swiglu(rows, m.ffn))
        multiply(("down",), m.ffn)
    add("rms_norm", rms_norm(outputs, m.hidden))
    if dtype != "F32":
        add("activate", activate(outputs, m.hidden))
    add("head", matmul(dtype, m.vocab, m.hidden, outputs))
    add("sample", sample(outputs, m.vocab))
    return ret


# ---- time ----

@dataclass
class Cost:  # of all launches of an op
    launches: int = 0
    least: float = 0     # bytes
    moved: float = 0     # different bytes read, and written
    l2: float = 0
    flops: float = 0     # needed
    computed: float = 0
    seconds: float = 0
    bound: dict = field(default_factory=dict)  # seconds by what bounds them


def resident_blocks(gpu, launch):
    """Blocks at work at once, at least: with as many registers as __launch_bounds__ lets ptxas take."""
    registers = min(LIMITS[gpu.arch].registers // (launch.threads * max(launch.blocks, 1)) // 8 * 8, 255)
    n = blocks_per_sm(gpu.arch, registers, launch.threads, launch.shared)
    return min(n * gpu.sms, launch.grid[0] * launch.grid[1] * launch.grid[2])


def cold_bytes(gpu, launch):
    """Of device memory: what is cold, and a step's own numbers where they are too many to stay in a quarter of L2."""
    total = 0
    for s in launch.streams.values():
        size = s.read + s.written
        total += size if s.cold or max(s.read, s.written) > gpu.l2 / 4 else 0
    return total


def time_of(gpu, launch, launch_cost):
    """(seconds, what bounds them)"""
    cold, l2 = cold_bytes(gpu, launch), sum(s.at_l2() for s in launch.streams.values())
    times = {"memory": cold / gpu.bandwidth, "L2": l2 / gpu.l2_bandwidth, "tensor": launch.tensor_flops() / gpu.tensor,
             "f32": launch.plain / gpu.plain}
    if launch.in_flight:
        ahead = resident_blocks(gpu, launch) * launch.in_flight
        if ahead < cold:
            times["latency"] = cold * gpu.latency / ahead
    bound = max(times, key=times.get)
    return times[bound] + launch_cost, bound if times[bound] > launch_cost else "launch"


def costs(gpu, launches, launch_cost):
    """op -> Cost"""
    ret = {}
    for op, launch in launches:
        c = ret.setdefault(op, Cost())
        seconds_, bound = time_of(gpu, launch, launch_cost)
        c.launches += 1
        c.least += sum(s.least for s in launch.streams.values())
        c.moved += sum(s.read + s.written for s in launch.streams.values())
        c.l2 += sum(s.at_l2() for s in launch.streams.values())
        c.computed += launch.tensor_flops() + launch.plain
        c.flops += launch.flops if launch.flops is not None else launch.tensor_flops() + launch.plain
        c.seconds += seconds_
        c.bound[bound] = c.bound.get(bound, 0) + seconds_
    return ret


def total(costs_of_ops):
    """(seconds, what bounds most of them)"""
    bound = {}
    for c in costs_of_ops.values():
        for name, t in c.bound.items():
            bound[name] = bound.get(name, 0) + t
    return sum(bound.values()), max(bound, key=bound.get)


def seconds(gpu, launches, launch_cost):
    return sum(time_of(gpu, launch, launch_cost)[0] for _, launch in launches)

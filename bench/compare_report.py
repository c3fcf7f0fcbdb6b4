"""What compare_torch.py says: a line for each length, the tables, and where libhpa loses.

A result: {"seq", "head_dim", "share_heads", "seconds", "ms": {name: median},
"masks": {block_k: {"density", "pairs", "tile_pairs_per_pair"}}}.
"""

import json

TILE = 128  # FlexAttention's default block, both ways


def say(text):
    print(text, flush=True)


def rate(result, block_k, name, flops):
    """TFLOP/s on the pairs that libhpa keeps."""
    pairs = result["masks"][block_k]["pairs"]
    return flops * pairs * result["head_dim"] / result["ms"][name] * 1e-9


def title(result, options):
    heads = "heads share a mask in their group" if result["share_heads"] else "a mask a head"
    return (f"{options.heads} query heads, {options.kv_heads} key/value heads of "
            f"{result['head_dim']}, {heads}")


def say_result(result, options):
    say(f"T {result['seq']}, {title(result, options)} ({result['seconds']:.0f} s):")
    say("  " + ", ".join(f"{name} {ms:.3f}" for name, ms in result["ms"].items()) + " ms")


def cell(ms):
    if ms is None:
        return "–"
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def pair_cell(result, name):
    forward, backward = (result["ms"].get(f"{name}_{way}") for way in ("forward", "backward"))
    return "–" if forward is None else f"{cell(forward)} / {cell(backward)}"


def rated(result, block_k, name, flops):
    ms = result["ms"].get(name)
    return "–" if ms is None else f"{cell(ms)}, {rate(result, block_k, name, flops):.0f}"


def times_faster(result, slow, fast):
    slow, fast = sum_of(result, slow), sum_of(result, fast)
    return None if slow is None or fast is None else slow / fast


def sum_of(result, names):
    values = [result["ms"].get(name) for name in names]
    return None if None in values else sum(values)


def ratio(value):
    return "–" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def step_names(block_k):
    return [f"hpa{block_k}_{part}" for part in ("mask", "forward", "backward")]


def print_table(results, options, block_k, dense_name):
    rest = "its tiles hold … times the pairs" if block_k != TILE else None
    head = ["tokens", "pairs kept", f"dense {dense_name}", "dense flash",
            "FlexAttention, its mask given", "libhpa mask (of it the transpose)",
            "libhpa forward", "libhpa backward", "against FlexAttention, forward / backward",
            f"whole step against {dense_name}"]
    if rest:
        head.insert(5, rest)
    say("| " + " | ".join(head) + " |")
    say("|" + "---:|" * len(head))
    for result in results:
        mask, ms = result["masks"][block_k], result["ms"]
        own, flex = f"hpa{block_k}", f"flex{block_k}"
        transpose = ms[f"{own}_mask"] - ms[f"{own}_search"]
        if transpose <= 0:  # drowned in the differences between rounds
            transpose = None
        row = [f"{result['seq']:,}", f"{100 * mask['density']:.1f}%",
               pair_cell(result, dense_name), pair_cell(result, "flash"),
               f"{rated(result, block_k, flex + '_forward', 4)} / "
               f"{rated(result, block_k, flex + '_backward', 10)}",
               f"{cell(ms[own + '_mask'])} ({cell(transpose)})",
               rated(result, block_k, own + "_forward", 4),
               rated(result, block_k, own + "_backward", 10),
               " / ".join(ratio(times_faster(result, [f"{flex}_{way}"], [f"{own}_{way}"]))
                          for way in ("forward", "backward")),
               ratio(times_faster(result, [f"{dense_name}_forward", f"{dense_name}_backward"],
                                  step_names(block_k)))]
        if rest:
            row.insert(5, f"{mask['tile_pairs_per_pair']:.2f}")
        say("| " + " | ".join(row) + " |")
    for result in results:
        name = f"hpa{block_k}_backward_any_order"
        if name in result["ms"]:
            say(f"With allow_nondeterministic, backward at {result['seq']:,} tokens: "
                f"{rated(result, block_k, name, 10)}.")


def losses(results, options, dense_name):
    """A sentence for each length and mask where a peer was faster: its time over libhpa's."""
    both = ("forward", "backward")
    for result in results:
        for block_k in result["masks"]:
            own, flex = f"hpa{block_k}", f"flex{block_k}"
            gains = [(f"{way} at {{}} FlexAttention's speed",
                      times_faster(result, [f"{flex}_{way}"], [f"{own}_{way}"])) for way in both]
            gains.append((f"the whole step at {{}} dense {dense_name}'s speed", times_faster(
                result, [f"{dense_name}_{way}" for way in both], step_names(block_k))))
            lost = [text.format(ratio(gain)) for text, gain in gains
                    if gain is not None and not gain >= 1]
            if lost:
                yield (f"{result['seq']:,} tokens, {title(result, options)}, block_k {block_k}: "
                       f"{', '.join(lost)}")


def print_report(results, options, dense_name):
    say("\nMilliseconds; forward / backward; after a comma, TFLOP/s on the kept pairs.")
    groups = {}
    for result in results:
        groups.setdefault((result["head_dim"], result["share_heads"]), []).append(result)
    for group in groups.values():
        for block_k in options.block_k:
            same = "the same pairs on both sides" if block_k == TILE else \
                "FlexAttention visits whole tiles of 128 keys"
            say(f"\n{title(group[0], options)}, block_k {block_k}: {same}\n")
            print_table(group, options, block_k, dense_name)
    lost = list(losses(results, options, dense_name))
    say("\nWhere libhpa loses:" if lost else "\nlibhpa lost none of these comparisons.")
    for sentence in lost:
        say(f"- {sentence}")


def write_csv(path, results):
    """Whole steps in ms for peers.gnuplot: cases of --seq with block_k 128. Empty: not measured."""
    own = step_names(TILE)
    peers = {name: [f"{name}_forward", f"{name}_backward"]
             for name in ("cudnn", "flash", f"flex{TILE}")}
    first = (results[0]["head_dim"], results[0]["share_heads"]) if results else None
    with open(path, "w", encoding="utf-8") as file:
        file.write("tokens,cudnn,flash,flex,libhpa\n")
        for result in results:
            if (result["head_dim"], result["share_heads"]) == first:
                steps = [sum_of(result, names) for names in (*peers.values(), own)]
                cells = ["" if ms is None else f"{ms:.4f}" for ms in steps]
                file.write(",".join([str(result["seq"]), *cells]) + "\n")


def write_json(path, machine, options, results, checks):
    with open(path, "w", encoding="utf-8") as file:
        settings = {name: str(value) for name, value in vars(options).items()}
        json.dump({"machine": machine, "settings": settings, "results": results,
                   "checks": checks.all}, file, indent=1)

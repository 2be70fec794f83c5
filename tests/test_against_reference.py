"""Every policy against its naive reference in `reference/`: fp64 logits within 1e-9, the same tokens kept.

Swept: budgets from 1 to beyond the length, all options, prompt modes, cuts into calls, grouped queries
(4 query heads on 1, 2 or 4 KV heads), batches of 1 to 3 rows, rows of unequal length with padding, the
options of shapes, ties. What disagrees is listed with its case, so a failure is a recipe.

No call here goes beyond the end of a prompt whose
length was declared to SnapKV, and what it holds is compared after that end only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from reference import reference_of_spec

from models.rope import RopeScaling

N = 20
#: One prompt; a prompt, steps and a segment; token by token; chunks, one of them a single token.
CALLS = ([N], [9, 1, 1, 2, 1, 6], [1] * N, [5, 5, 1, 4, 5])
MIXED = CALLS[1]
POLICIES = "transformer window streaming tova h2o snapkv scissorhands short lococo random".split()
#: These never look at scores, so a layer with a window of its own need not hold what it cannot see any more.
POSITIONS_ONLY = ("transformer", "window", "streaming", "short")
LOCOCO = (
    "block=5",
    "heavy=0.25,block=1",
    "heavy=0,scores=accumulated",
    "kernel=5,scores=accumulated,block=4",
    "depth=3,block=4",
    "rope_factor=2.0,block=4,local=1",
)


def specs(policy: str, budget: int) -> list[str]:
    """Every combination of the options of a policy that is legal at this budget."""
    b = f"{policy}:budget={budget}"
    prompts, selects = ("stepwise", "bulk"), ("layer", "head")
    match policy:
        case "transformer":
            return ["transformer"]
        case "window" | "streaming":
            return [f"{b},sinks={sinks}" for sinks in (0, 2) if sinks < budget]
        case "tova":
            modes = [f"{b},prompt={p},select={s}" for p in prompts for s in selects]
            protected = [f"{m},protect={i}" for m in modes for i in (0, 2) if i < budget]
            far = [f",protect={i}" for i in (0, 1) if i < budget]  # a gap of more than 10 is then certain
            return protected + [f"{b},select={s},positions=compressed{i}" for s in selects for i in far]
        case "h2o":
            modes = [f"{b},prompt={p},select={s}" for p in prompts for s in selects]
            return [f"{m},heavy={heavy}" for m in modes for heavy in (0, 0.5, 0.7, 1)]
        case "snapkv":
            return [f"{b},window={w},kernel={k}" for w in (1, 4) if w < budget for k in (1, 3, 5)]
        case "scissorhands":
            modes = [f"{b},prompt={p},history={h}" for p in prompts for h in (1, 5, 100)]
            return [f"{m},recent={r}" for m in modes for r in (0, 3) if r <= budget]
        case "short":
            return [f"{b},mode=split"]
        case "random":
            return [b]
        case "lococo":
            kernel = [more if "kernel" in more else f"kernel=3,{more}" for more in LOCOCO]
            return [f"{b},{more}" for more in kernel if budget >= 2]
    raise KeyError(policy)


def length_of(policy: str) -> int:
    """LoCoCo has 16 slots of slack before it compresses at all."""
    return N + 17 if policy == "lococo" else N


def fitted(calls: list[int], length: int) -> list[int]:
    """The same cuts with further tokens at the end."""
    more = length - sum(calls)
    return calls if more == 0 else [*calls, *([1] * more if max(calls) == 1 else [more - 1, 1])]


@dataclass
class Case:
    """One model fed once. `rows[b]` are the calls of row b; a call may be shorter or empty for some rows."""

    spec: str
    rows: list[list[int]]
    shape: str = "plain"
    changes: dict = field(default_factory=dict)
    prompts: list[int] | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float64
    padding: str = "right"

    @property
    def policy(self) -> str:
        return self.spec.partition(":")[0]


@dataclass
class Outcome:
    error: float
    kept: list
    expected: list

    @property
    def same(self) -> bool:
        return self.kept == self.expected


def spread(size: int, width: int, padding: str, seed: int) -> list[bool]:
    """Which of `width` places hold the `size` valid tokens of a call."""
    gaps = random.Random(seed).sample(range(width), width - size)
    empty = {"right": range(size, width), "left": range(width - size), "gaps": gaps}[padding]
    return [place not in empty for place in range(width)]


def outcome(network, tokens, case: Case) -> Outcome:
    """Feed the model and the reference: largest difference of logits, and both kept sets [row][layer]."""
    model = network(case.spec, case.shape, case.dtype, **{"num_layers": 2} | case.changes)
    B, lengths = len(case.rows), [sum(calls) for calls in case.rows]
    ids = tokens(B, max(lengths), case.seed)
    cache = model.new_cache(B, max(lengths), prompts=case.prompts)
    done, logits = [0] * B, [[] for _ in range(B)]
    for step, sizes in enumerate(zip(*case.rows, strict=True)):
        width = max(sizes)
        valid = torch.tensor([spread(size, width, case.padding, step) for size in sizes])
        part = torch.zeros(B, width, dtype=torch.long)
        for b, size in enumerate(sizes):
            part[b, valid[b]] = ids[b, done[b] : done[b] + size]
            done[b] += size
        out = model.extend(part, None if valid.all() else valid, cache, "all")
        for b in range(B):
            logits[b].append(out[b, valid[b]])
    error, kept, expected = 0.0, [], []
    for b, calls in enumerate(case.rows):
        more = {}
        if case.policy == "snapkv" and case.prompts:
            more = {"prompt_length": case.prompts[b]}
        calls = [size for size in calls if size]
        wanted, held = reference_of_spec(case.spec, model, ids[b, : lengths[b]], calls, **more)
        error = max(error, float((torch.cat(logits[b]).double() - wanted).abs().max()))
        if case.policy != "lococo":
            expected.append([to_come(case, model, i, lengths[b], row) for i, row in enumerate(held)])
            state = [cache.states[f"{i}.attention"].kept_positions()[b] for i in range(len(held))]
            found = [[sorted(j for j in head.tolist() if j >= 0) for head in layer] for layer in state]
            kept.append([to_come(case, model, i, lengths[b], row) for i, row in enumerate(found)])
    return Outcome(error, kept, expected)


def to_come(case: Case, model, layer: int, length: int, held: list[list[int]]) -> list[list[int]]:
    """Of what is held: what the next query could see, where the policy does not look at scores."""
    window = model.shape.layer_window(layer)
    if window is None or case.policy not in POSITIONS_ONLY:
        return held
    return [[j for j in positions if length - j < window] for positions in held]


def check(network, tokens, cases) -> None:
    """All cases in fp64; lists those that disagree."""
    wrong, count = [], 0
    for case in cases:
        result, count = outcome(network, tokens, case), count + 1
        if not result.same or not result.error <= 1e-9:
            wrong.append(f"{case}: logits differ by {result.error:.1e}, kept sets equal: {result.same}")
    assert count and not wrong, "\n".join(wrong)


every_policy = pytest.mark.parametrize("policy", POLICIES)


@every_policy
def test_budgets_and_options(network, tokens, policy):
    """Every option at budgets around nothing, a quarter, and the whole length; one prompt with steps."""
    length = length_of(policy)
    calls = fitted(MIXED, length)
    budgets = (1, 2, 6, length - 1, length, length + 1) if policy != "lococo" else (2, 6, 11)
    found = [spec for budget in budgets for spec in specs(policy, budget)]
    check(network, tokens, (Case(spec, [calls]) for spec in dict.fromkeys(found)))


@every_policy
@pytest.mark.parametrize("calls", CALLS, ids=["whole", "mixed", "tokens", "chunks"])
def test_calls(network, tokens, policy, calls):
    """Every option in every cut into calls."""
    calls = fitted(calls, length_of(policy))
    check(network, tokens, (Case(spec, [calls], "conv", seed=1) for spec in specs(policy, 5)))


@every_policy
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_and_batches(network, tokens, policy, kv_heads):
    """Rows of a batch keep and say what they would alone, whatever the group of query heads."""
    calls, changes = fitted(MIXED, length_of(policy)), {"num_kv_heads": kv_heads}
    cases = [
        Case(spec, [calls] * (n % 3 + 1), changes=changes, seed=2)
        for n, spec in enumerate(sample(specs(policy, 6), 5))
    ]
    check(network, tokens, cases)


def sample(found: list[str], count: int) -> list[str]:
    """Always the same few of them."""
    return random.Random(0).sample(found, min(count, len(found)))


@every_policy
@pytest.mark.parametrize("padding", ["right", "left", "gaps"])
def test_rows_of_unequal_length(network, tokens, policy, padding):
    """Rows share calls but not lengths: each keeps and says what it would alone, padding is nothing."""
    rows = [[9, 1, 1, 4, 1, 4], [7, 1, 0, 4, 1, 7], [3, 1, 1, 2, 0, 7]]
    rows = [fitted(calls, sum(calls) + length_of(policy) - N) for calls in rows]
    shape = "conv" if padding == "gaps" else "plain"
    check(network, tokens, (Case(s, rows, shape, padding=padding) for s in sample(specs(policy, 4), 4)))


FEATURES = {
    "head_dim": dict(attention_head_dim=16),
    "biases": dict(qkv_bias=True, out_bias=True, ffn_bias=True),
    "qk_rms": dict(qk_rms=True),
    "tied": dict(tied=True),
    "linear": dict(rope_scaling=RopeScaling("linear", 3.0)),
    "llama3": dict(rope_scaling=RopeScaling("llama3", 8.0, original_positions=40)),
    "yarn": dict(rope_scaling=RopeScaling("yarn", 4.0, original_positions=200, amplitude=1.2)),
    "yarn-untruncated": dict(rope_scaling=RopeScaling("yarn", 4.0, original_positions=200, truncate=False)),
    "partial": dict(rope_base=100.0, rope_fraction=0.5),
}


@every_policy
@pytest.mark.parametrize("feature", FEATURES)
def test_options_of_shapes(network, tokens, policy, feature):
    """What real checkpoints switch on reaches every policy."""
    calls = fitted(MIXED, length_of(policy))
    check(network, tokens, [Case(sample(specs(policy, 6), 1)[0], [calls], changes=FEATURES[feature])])


@every_policy
@pytest.mark.parametrize("budget", [3, 9])
def test_a_models_own_sliding_window(network, tokens, policy, budget):
    """One layer sees only its 5 newest tokens; what it cannot see has no probability there."""
    calls, changes = fitted(MIXED, length_of(policy)), dict(sliding_window=5, sliding_layers=(0,))
    check(network, tokens, (Case(spec, [calls], changes=changes) for spec in specs(policy, budget)))


@pytest.mark.parametrize("policy", ["tova", "h2o", "snapkv", "scissorhands"])
def test_ties(network, tokens, policy):
    """With all logits equal everything is a tie: of equals the oldest goes."""

    def level(spec, shape, dtype, **changes):
        model = network(spec, shape, dtype, **changes)
        for block in model.blocks:
            block.mixer.qkv.weight[: block.mixer.sizes[0]] = 0
        return model

    check(level, tokens, (Case(spec, [calls]) for calls in CALLS[:2] for spec in specs(policy, 5)))


@pytest.mark.parametrize(
    ("rows", "prompts"),
    [
        ([[7, 8, 1, 1, 7]], [15]),
        ([[7, 8, 1, 1, 7], [2, 4, 1, 0, 7], [0, 2, 1, 1, 1]], [15, 6, 2]),
        ([[4, 3, 5, 1, 1, 3], [8, 2, 1, 1, 1, 3], [9, 1, 1, 1, 0, 3]], [12, 10, 9]),
    ],
    ids=["one", "fits", "rows-in-turn"],
)
def test_snapkv_compresses_at_the_declared_end(network, tokens, rows, prompts):
    """Prompts fed in chunks, their lengths declared: one compression per row, at its own prompt's end."""
    check(network, tokens, (Case(spec, rows, prompts=prompts) for spec in specs("snapkv", 5)))


@pytest.mark.parametrize("shape", ["plain", "conv"])
@pytest.mark.parametrize(
    ("calls", "scored"),
    [
        ([13] + [1] * 20, ()),
        ([3] + [1] * 20, ()),
        ([5, 2, 1, 3, 12, 1, 1], ()),
        ([9, 9, 9], (1,)),
        ([14], (0,)),
    ],
)
def test_short_truncates_prompts(network, tokens, shape, calls, scored):
    """A call for its last logits is a prompt: its last `budget` tokens begin anew, `budget` fit on top."""
    spec, length = "short:budget=5,mode=truncate", sum(calls)
    model, ids = network(spec, shape, num_layers=2), tokens(1, length)
    expected, held = reference_of_spec(spec, model, ids[0], calls, scored=scored)
    cache = model.new_cache(1, length)
    start = 0
    for index, part in enumerate(ids.split(calls, 1)):
        logits = model.extend(part, None, cache, "all" if index in scored else "last")[0]
        wanted = (
            expected[start : start + len(part[0])] if index in scored else expected[start + len(part[0]) - 1]
        )
        assert (logits - wanted).abs().max() <= 1e-9
        start += len(part[0])
    for layer in range(2):
        positions = cache.states[f"{layer}.attention"].kept_positions()[0].tolist()
        assert [sorted(j for j in head if j >= 0) for head in positions] == held[layer]


@every_policy
def test_single_precision(network, tokens, policy):
    """fp32 logits within 1e-4 of the fp64 reference wherever the same tokens are kept.

    Rounding may flip a close eviction, after which the two read different tokens: only cases whose kept sets
    agree are compared (LoCoCo has none to look at: all are), and at least nine of ten must agree.
    """
    calls = fitted(MIXED, length_of(policy))
    same = []
    for n, spec in enumerate(specs(policy, 6)):
        case = Case(
            spec, [calls, calls], seed=n, dtype=torch.float32, changes={"num_kv_heads": (1, 2, 4)[n % 3]}
        )
        result = outcome(network, tokens, case)
        same.append(result.same)
        assert result.error <= 1e-4 or not result.same, f"{case}: logits differ by {result.error:.1e}"
    assert sum(same) >= 0.9 * len(same), f"{sum(same)} of {len(same)} cases keep the same tokens in fp32"


@pytest.mark.slow
@every_policy
def test_every_budget_in_random_cuts(network, tokens, policy):
    """Budgets from 1 to N + 1, each with options, cuts, groups, batches and shapes drawn at random."""
    draw, length, cases = random.Random(policy), length_of(policy), []
    # Every second one; LoCoCo's cost most: every third, from 2.
    for budget in range(2, length + 2, 3) if policy == "lococo" else range(1, length + 2, 2):
        for spec in draw.sample(found := specs(policy, budget), min(8, len(found))):
            calls = cut(draw, length)
            cases.append(
                Case(
                    spec,
                    [calls] * draw.randint(1, 3),
                    draw.choice(["plain", "conv"]),
                    {"num_kv_heads": draw.choice([1, 2, 4])},
                    seed=draw.randrange(1000),
                )
            )
    check(network, tokens, cases)


def cut(draw: random.Random, length: int) -> list[int]:
    """`length` tokens in calls, many of them single tokens."""
    calls = []
    while (left := length - sum(calls)) > 0:
        calls.append(min(left, draw.choice([1, 1, 2, 3, 5, 8, 13])))
    return calls

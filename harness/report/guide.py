"""What the numbers mean, in the words that the page prints: one definition per number, no number without.

The definitions follow the clocks in `harness`: a change there is a change here.
"""

from __future__ import annotations

QUESTION = (
    "How much memory and time does each KV-cache architecture save over a transformer that keeps "
    "everything, and what does it forget in exchange?"
)

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "live cache",
        (
            "Bytes of everything a request keeps between two steps: keys, values, positions, scores, "
            "convolution and retention state, counted over unique storages at each tensor's real type. "
            "Weights are not part of it. On a CPU this is the memory verdict: the resident set of a process "
            "holds the interpreter, the libraries and the weights as well."
        ),
    ),
    (
        "predicted cache",
        (
            "What the architecture's own formula says before anything runs. An estimate; a test holds it to "
            "the live bytes."
        ),
    ),
    (
        "prefill",
        (
            "From the prompt's ids on the device to the logits of the next token, the policy's work "
            "included: scoring, evicting, compressing. Median over the repeats, whiskers from the first to "
            "the third quartile."
        ),
    ),
    (
        "decode step",
        (
            "One step of the whole batch, a token for each of its requests: mean over the steps of one "
            "repeat, then the median over the repeats, so a policy that works in bursts pays for its bursts. "
            "The chart over positions shows single steps. The rate per token is the decode rate."
        ),
    ),
    (
        "decode rate",
        (
            "Tokens of all requests of the batch per second of decoding (shown apart where a batch has more "
            "than one request; with one it is 1 / decode step)."
        ),
    ),
    (
        "times",
        (
            "Only of executions that were warmed up and repeated. Needle and language suites run once and "
            "cold: their times stand under “All numbers” and in no verdict and no chart."
        ),
    ),
    (
        "load by other processes",
        (
            "Share of the time of all cores, ours included, that other processes used while the clock ran: "
            "on 2 cores, of which we use one, a fully busy other core reads 50 %. Where it is high, compare "
            "ratios of this page, not its absolute times with those of another."
        ),
    ),
    (
        "needle, strict",
        (
            "Share of trials in which the first integer of the answer equals the hidden number; substring "
            "scoring accepts the number anywhere in it, and judges variant=city, whose official score it is. "
            "The answer is generated through the cache under test. Beside it Wilson's 95 % interval, which "
            "takes trials as independent."
        ),
    ),
    (
        "lost, kept but not used",
        (
            "Each trial watches the tokens of the value that is asked for. When the answer has been "
            "produced, every layer whose slots have positions is looked at: if any head of one lost any of "
            "them to the policy, the trial counts as lost, else as kept; the mean share that was held "
            "stands beside it. A sliding window that is part of the network evicts nothing: then it counts "
            "as kept while any state still holds all of it, such as a cache that several layers share, else "
            "as lost. Slots that hold mixtures of tokens, and recurrent states, do not tell what they hold."
        ),
    ),
    (
        "bits/byte, perplexity",
        (
            "Sum of the negative log-likelihood over all texts divided by the sum of bytes (tokens, words), "
            "never a mean of per-text values. Every token is scored once, through the cache, so eviction "
            "acts. Numbers of different texts do not compare and never share a table or a chart."
        ),
    ),
    (
        "intervals over texts or examples",
        (
            "Percentile bootstrap: whole books or examples are drawn with replacement, 2,000 times, always "
            "with the same seed. A book read in pieces is drawn as a whole. A difference is "
            "taken over the cases that both scored, in pairs: of bits per byte with Student's interval (the "
            "jackknife's error, none below three texts), of SCROLLS's examples drawn again. Fewer than five "
            "cases make no interval worth much. Shares of right answers have Wilson's interval instead."
        ),
    ),
    (
        "SCROLLS",
        (
            "ROUGE tasks: geometric mean of the mean ROUGE-1, -2 and -L over all examples; the others: mean "
            "token F1 or exact match; times 100. The overall number is the plain mean of the seven tasks "
            "and is given only where all seven were scored. The gold answer is the first reference, forced "
            "through the cache: its bits per byte tell caches apart even where no answer is right."
        ),
    ),
    (
        "not exercised",
        (
            "The policy never had to evict in that cell: the number is the full cache's, not the policy's. "
            "Where it had to in some requests, tables of tasks say in what share of them it acted."
        ),
    ),
    (
        "† suspect, ‡ invalid",
        (
            "Every row has a verdict with its reasons (clocks, other processes, warm-up, spread, tokens). "
            "A point or a field has the worst verdict that more than half of its rows share, where an "
            "invalid row counts as suspect, too. In charts its mark is hollow within a ring, with a cross in "
            "the ring where it is invalid; tables have a sign and the reasons below. A hollow mark without a "
            "ring is another thing: in charts over budgets a policy that never had to evict. What is invalid "
            "is never called the best."
        ),
    ),
    (
        "floor, MFU, MBU",
        (
            "The floor is the time that the predicted work would take at this machine's measured ceilings: "
            "a matrix product in the run's type, and reading at the step's working set; the longer one. MFU: "
            "the prefill's share of the first, MBU that of the second which a step reaches with the "
            "bytes that its policy reads. Launch-bound is the share of a step in which the device waited."
        ),
    ),
    (
        "where the memory went",
        (
            "Weights, live cache, activations and logits, fragmentation (reserved, not allocated), driver "
            "and what is left unexplained, of the highest peak of a phase. On a CPU the driver's part is the "
            "interpreter and its libraries."
        ),
    ),
    (
        "best",
        (
            "Bold is the best value and every one that cannot be told from it; nothing is bold where nothing "
            "can be told apart. Bytes are exact; times need disjoint quartile ranges over at least three "
            "repeats; needle scores disjoint intervals; bits per byte a paired 95 % interval over at least "
            "three texts."
        ),
    ),
    (
        "× and pp",
        (
            "Small print beside a number compares it with the transformer of the same column: a factor for "
            "costs, a difference for quality (pp: percentage points)."
        ),
    ),
)

LIMITS: tuple[str, ...] = (
    (
        "The reference models are small. What they show is how a policy behaves under equal conditions, not "
        "how a large model of that architecture would score."
    ),
    "Quality is never measured on random weights, and no chart or table holds both.",
    (
        "Repeats within one process show the noise of that process only; replicates are separate processes, "
        "and the two are never pooled."
    ),
    "Times of two machines do not compare. Each run on this page has its own charts.",
    (
        "A cell that ran out of memory, out of time or crashed is a result: it is listed, and its line "
        "ends in a cross."
    ),
)

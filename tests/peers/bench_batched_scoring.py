"""Multiple-choice requests in batches, each prompt read once, against the loop that asks one by one.

    KVMARK_DATA=FOLDER python tests/peers/bench_batched_scoring.py              (about 5 minutes)
    KVMARK_DATA=FOLDER python tests/peers/bench_batched_scoring.py --tasks hellaswag --shots 0 --json out.json

One thread, fp32, our shipped weights, rows of real tasks: 50 questions of four choices each. Both sides are
the harness: `Measurement.run` with all requests at once (batches of requests of like length, a question's
choices fork its cache), and `execute` with one request after the other, its context read each time. A third
column is a bare loop over `extend`, without anything that the harness records. All must give the same
log-probabilities before a clock starts. Method: `bench_pairs.py`; nothing is asserted about times.

What can be gained depends on the task: choices share the question and nothing else, so four long endings
after a short scene (hellaswag) leave little to share, and questions after examples (--shots) nearly all.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from bench_pairs import Foreign, Row, compare, document, interleaved, markdown

from harness.execute import execute, requests
from harness.loading import load_model, weights_of
from harness.measure import Measurement
from harness.plan import Cell, Settings
from harness.rows import base_row
from models.architecture import Architecture
from suites.lm_eval_bridge import loading
from suites.lm_eval_bridge.model import CacheLM
from suites.suite import Answer, Case, Context, Suite
from suites.tokenizer import ByteTokenizer

SPECS = ("transformer", "tova:budget=64", "yoco")
#: (task, examples before the question, target); every target is the issue's, for the plainest form.
WORK = (("arc_easy", 0, ">= 3.0"), ("arc_easy", 2, ""), ("hellaswag", 0, ""))
QUESTIONS = 50
AGREEMENT = 1e-3


class Asked(Suite):
    """No cases of its own: they were made by lm-eval."""

    driven, needs_text = True, False


def questions(task: str, shots: int) -> list[Case]:
    """The task's requests as lm-eval makes them, less those of questions without exactly four choices."""
    cases: list[Case] = []

    def keep(asked):
        cases.extend(asked)
        return [Answer((), (), likeliest=(False,))] * len(asked)

    loaded = loading.load([task], None, True)[task]
    loading.prepare(loaded, shots)
    loaded.build_all_requests(limit=2 * QUESTIONS)
    CacheLM(keep, ByteTokenizer()).loglikelihood(loaded.instances)
    groups: dict[int, list[Case]] = {}
    for case, number in zip(cases, requests(cases), strict=True):
        groups.setdefault(number, []).append(case)
    four = [group for group in groups.values() if len(group) == 4][:QUESTIONS]
    return [case for group in four for case in group]


class Bench:
    """One architecture and one set of requests."""

    def __init__(self, spec: str, cases: list[Case], batch: int) -> None:
        self.spec, self.cases, self.settings = spec, cases, Settings(batch=batch)
        self.model: Architecture = load_model(spec, self.settings)
        self.label = weights_of(spec, self.settings).label

    def batched(self) -> tuple[list[float], list[int]]:
        """(sum of log-probabilities, evicted tokens) of each request."""
        measurement = Measurement(
            self.model, Asked(Suite.Options(), Context(ByteTokenizer(), None)),
            Cell("bench", self.spec, "lm_eval", {}), self.settings, None,
            base=lambda cell, **known: base_row("bench", cell, self.settings, **known),
            on_phase=lambda phase: None,
        )  # fmt: skip
        return [sum(answer.logprobs) for answer in measurement.run(self.cases)], measurement.evicted

    def one_by_one(self) -> list[float]:
        answers = [execute(self.model, [case], ByteTokenizer(), "cpu")[0][0] for case in self.cases]
        return [sum(answer.logprobs) for answer in answers]

    @torch.inference_mode()
    def bare(self) -> list[float]:
        sums = []
        for case in self.cases:
            cache = self.model.new_cache(1, case.num_tokens, seeds=[case.seed], prompts=[len(case.prompt)])
            rows = [self.model.extend(torch.tensor([case.prompt]), None, cache)[:, None]]
            if len(case.forced) > 1:
                rows.append(self.model.extend(torch.tensor([case.forced[:-1]]), None, cache, logits="all"))
            marks = torch.cat(rows, 1).log_softmax(-1).gather(-1, torch.tensor([case.forced])[..., None])
            sums.append(marks.sum().item())
        return sums

    def compared(self, task: str, shots: int, pairs: int, target: str) -> list[Row]:
        """Batches against both loops. Stops where the sides do not say the same."""
        sums, evicted = self.batched()
        for other in (self.one_by_one(), self.bare()):
            difference = max(abs(a - b) for a, b in zip(sums, other, strict=True))
            if not difference <= AGREEMENT:
                raise SystemExit(f"{self.spec} on {task}: log-probabilities differ by {difference:.3g}.")
        sides = {"batched": self.batched, "one by one": self.one_by_one, "bare": self.bare}
        samples = interleaved(sides, pairs, warmups=1)
        tokens = sum(len(case.prompt) + len(case.forced) for case in self.cases)
        what = f"{self.spec}, {task}, {shots} examples"
        note = (
            f"the policy acted in {sum(n > 0 for n in evicted) / len(evicted):.0%} of {len(evicted)} requests"
        )
        return [
            compare(task, what, tokens, samples, "batched", "one by one", target, note),
            compare(task, f"{what}: bare loop", tokens, samples, "batched", "bare"),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", help="tasks, separated by commas, instead of the usual list")
    parser.add_argument("--shots", type=int, default=0, help="examples before the question, with --tasks")
    parser.add_argument("--specs", default="|".join(SPECS), help="architectures, separated by |")
    parser.add_argument("--batch", type=int, default=16, help="requests that run together")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all samples and the machine card here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    foreign, rows = Foreign(), []
    named = [(task, arguments.shots, "") for task in (arguments.tasks or "").split(",") if task]
    for task, shots, target in named or WORK:
        cases = questions(task, shots)
        for spec in arguments.specs.split("|"):
            for row in Bench(spec, cases, arguments.batch).compared(task, shots, arguments.pairs, target):
                rows.append(row)
                print(markdown([row]).splitlines()[-1], flush=True)
    data = document(rows, foreign, batch=arguments.batch)
    print(f"\n{markdown(rows)}\n\n{data['machine']['cpu_model']}, batches of {arguments.batch} requests, "
          f"others used {data['foreign_cpu_share']:.0%} of the machine.")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

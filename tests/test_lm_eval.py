"""The suite lm_eval: what it asks, what it reads, what it says when it cannot."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest
from lm_eval_help import (
    TASKS,
    Asking,
    measured,
    numbers,
    opened,
    plain,
    rows,
    suite,
    write_model,
    write_rows,
    write_tasks,
)

from suites.data import DataError
from suites.tokenizer import ByteTokenizer

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from suites.lm_eval_bridge import loading
from suites.lm_eval_bridge.model import CacheLM

EVERY = "+".join(TASKS)
#: Where lm-eval itself defines the seven, below its folder of tasks.
THEIRS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of our rows, found as a user's data is found."""
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path / "data")))
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


# --- what is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_our_yaml_asks_what_lm_evals_own_asks(data, task):
    """The same contexts, continuations and right answers, from the same rows."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = loading.Path(lm_eval.tasks.__file__).parent
    config = load_yaml(folder / THEIRS[task])
    split = Dataset.from_list(rows(task))
    config["custom_dataset"] = lambda **metadata: dict.fromkeys(("train", "validation", "test"), split)
    for name in ("tag", "dataset_path", "dataset_name"):
        config.pop(name, None)
    theirs = ConfigurableTask(config=config)
    ours = loading.load([task], None, local=True)[task]
    for one in (theirs, ours):
        loading.prepare(one, 0)
        one.build_all_requests()
    assert [request.args for request in ours.instances] == [request.args for request in theirs.instances]
    for mine, other in zip(ours.eval_docs, theirs.eval_docs, strict=True):
        target = (ours.doc_to_text(mine), ours.doc_to_target(mine))
        assert target == (theirs.doc_to_text(other), theirs.doc_to_target(other))
    assert ours.aggregation().keys() == theirs.aggregation().keys() and theirs.VERSION == ours.VERSION


def test_one_cell_per_task_and_one_call_per_kind(data):
    asked, run = plain(f"tasks={EVERY},local=true,limit=4,bootstrap=0"), Asking()
    assert asked.cells() == [{"task": task} for task in TASKS]
    for cell in asked.cells():
        asked.drive(cell, run)
    assert len(run.calls) == len(TASKS)
    cases = [case for call in run.calls for case in call]
    assert len({case.id for case in cases}) == len(cases), "ids are unique over all tasks"
    assert [{**case.axes} for case in run.calls[2]] == [{"task": "boolq"}] * 8
    asked.drive({"task": "boolq"}, again := Asking())
    assert again.calls[0] == run.calls[2], "the same cases every time"


def test_choices_of_a_question_are_one_request(data):
    """arc: four continuations of one prompt; winogrande: two prompts, which share nothing."""
    for task, count in (("arc_easy", 4), ("winogrande", 1)):
        plain(f"tasks={task},local=true,limit=1").drive({"task": task}, run := Asking())
        shared = Counter((case.prompt, case.seed) for case in run.calls[0])
        assert set(shared.values()) == {count}
        assert len({case.forced for case in run.calls[0]}) == (count if count > 1 else 1)
    prompt, choice = run.calls[0][0].prompt, run.calls[0][0].forced
    assert bytes(prompt[1:]).endswith(b"because Ada") and prompt[0] == ByteTokenizer.bos
    assert bytes(choice).startswith(b" was early") and bytes(choice).endswith(b"said the_sign.")


def test_examples_come_before_the_question_and_never_hold_it(data):
    plain("tasks=piqa,local=true,shots=3,limit=2").drive({"task": "piqa"}, run := Asking())
    text = bytes(run.calls[0][0].prompt[1:]).decode()
    assert text.count("Question:") == 4 and text.count("before 0 o'clock") == 1
    with pytest.raises(DataError, match="6 rows to show, too few for 6 examples"):
        plain("tasks=piqa,local=true,shots=6").cells()


# --- what is fed -----------------------------------------------------------------------------------


def lm(run, **options) -> CacheLM:
    return CacheLM(run, ByteTokenizer(), **options)


def instances(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, 0, ("made", i, 1)) for i, argument in enumerate(arguments)]


def test_long_requests_are_cut_on_the_left_and_counted():
    asked = lm(run := Asking(), max_length=8)
    pairs = [("abcdefgh", "xy"), ("abcdef", "xy"), ("abc", "12345678")]
    asked.loglikelihood(instances("loglikelihood", *pairs))
    assert [(bytes(c.prompt[-6:]), bytes(c.forced)) for c in run.calls[0][:1]] == [(b"cdefgh", b"xy")]
    fed = [len(case.prompt) + len(case.forced) - 1 for case in run.calls[0]]
    assert fed == [8, 8, 8] and asked.truncated == 2
    with pytest.raises(ValueError, match="9 tokens does not fit into max_length=8"):
        asked.loglikelihood(instances("loglikelihood", ("abc", "123456789")))


@pytest.mark.parametrize("max_length", [None, 2, 5, 9, 10, 11, 40])
def test_rolling_windows_score_each_token_once(max_length):
    asked = lm(run := Asking(), max_length=max_length)
    texts = ["", "0", "0123456789", "ab" * 20]
    sums = asked.loglikelihood_rolling(instances("loglikelihood_rolling", *((text,) for text in texts)))
    bos = ByteTokenizer.bos
    assert sums == [-0.5 * len(text) for text in texts]
    for number, text in enumerate(texts):
        windows = [case for case in run.calls[0] if f"/doc={number}/" in case.id]
        ids = list(text.encode())  # our own networks see one BOS; of checkpoints see the parity tests
        assert [token for case in windows for token in case.forced] == ids
        done = 0
        for case in windows:
            before = [bos, *ids][: done + 1]
            assert list(case.prompt) == before[len(before) - len(case.prompt) :]
            assert len(case.prompt) + len(case.forced) - 1 <= (max_length or 99)
            done += len(case.forced)


def test_generation_is_greedy_or_refused():
    asked = lm(run := Asking(), max_length=50)
    told = {
        "until": ["\n", "", "stop"],
        "max_gen_toks": 7,
        "do_sample": False,
        "temperature": 0.0,
        "top_p": 1,
    }
    assert asked.generate_until(instances("generate_until", ("ask", told), ("x" * 60, told))) == ["text"] * 2
    first, second = run.calls[0]
    assert (first.stop, first.max_new_tokens, first.forced) == (("\n", "stop"), 7, None)
    assert len(second.prompt) == 43 and asked.truncated == 1
    for wrong in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        with pytest.raises(ValueError, match="greedy") as caught:
            asked.generate_until(instances("generate_until", ("ask", wrong)))
        assert next(iter(wrong)) in str(caught.value)
    with pytest.raises(ValueError, match="leaves no room for 256 new tokens"):
        asked.generate_until(instances("generate_until", ("ask", {"until": ["\n"]})))


def test_ids_are_unique_where_a_request_is_repeated_or_asked_in_two_ways():
    """`repeats` are the same instance again; SQuAD's answer and its "unanswerable" have one index."""
    asked, greedy = lm(run := Asking()), {"until": ["\n"], "max_gen_toks": 4}
    (one,) = instances("loglikelihood", ("ask", "a"))
    (two,) = instances("generate_until", ("ask", greedy))
    (text,) = instances("loglikelihood_rolling", ("some text",))
    assert asked.loglikelihood([one, one]) == [(-0.5, False)] * 2
    assert asked.generate_until([two, two, two]) == ["text"] * 3
    assert asked.loglikelihood_rolling([text, text]) == [-0.5 * 9] * 2
    cases = [case for call in run.calls for case in call]
    assert len({case.id for case in cases}) == len(cases) == 7
    assert len({(case.prompt, case.seed) for case in cases[:5]}) == 1, "and still one request"
    assert asked.loglikelihood_rolling([]) == asked.loglikelihood([]) == []


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="Nothing is left to score of ''"):
        lm(Asking()).loglikelihood(instances("loglikelihood", ("context", "")))


# --- through the harness ---------------------------------------------------------------------------


def test_eviction_changes_the_numbers_and_is_counted(data, model):
    of = opened(model)
    asked = suite("tasks=lambada_openai+piqa,local=true", of)
    full, tova = (measured(spec, asked, of, model) for spec in ("transformer", "tova:budget=16"))
    before, after = numbers(full["lambada_openai"]), numbers(tova["lambada_openai"])
    assert before["perplexity"] != pytest.approx(after["perplexity"], rel=0.01)
    assert before.keys() == after.keys() >= {"acc", "acc_stderr", "perplexity_stderr", "truncated_requests"}
    assert after["sample_len"] == 6
    assert {(row.requests, row.requests_with_eviction) for row in full["piqa"]} == {(12, 0)}
    assert {(row.requests, row.requests_with_eviction) for row in tova["piqa"]} == {(12, 12)}
    modes = {row.scoring_mode for row in tova["piqa"] if row.case}
    assert modes == {"cache-extend, segments of 512"}


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path)


def test_tasks_and_groups_of_the_users_own(folder, model):
    of = opened(model)
    asked = suite(f"tasks=both,include={folder}", of)
    assert asked.cells() == [{"task": "chronicle"}, {"task": "quote"}]
    found = {task: numbers(rows) for task, rows in measured("tova:budget=16", asked, of, model).items()}
    assert found["chronicle"].keys() == {
        "word_perplexity", "bits_per_byte_rolling", "sample_len", "truncated_requests"
    }  # fmt: skip
    assert found["quote"].keys() == {
        "exact_match", "exact_match_stderr", "exact_match,strict-match", "exact_match,strict-match_stderr",
        "sample_len", "truncated_requests",
    }  # fmt: skip


def test_repeats_are_rows_of_their_own(folder, model):
    quote = folder / "quote.yaml"
    quote.write_text(quote.read_text() + "repeats: 2\n")
    of = opened(model)
    (rows,) = measured("random:budget=16", suite(f"tasks=quote,include={folder}", of), of, model).values()
    said = {row.case: row.answer for row in rows if row.metric == "answer_tokens"}
    assert len(said) == 6 == sum(row.metric == "answer_tokens" for row in rows)
    assert len(set(said.values())) <= 3 and {row.requests for row in rows} == {6}
    for id, answer in said.items():
        assert said.get(f"{id}/repeat=1", answer) == answer


# --- what is read ----------------------------------------------------------------------------------


def test_the_label_follows_what_is_read(data, tmp_path):
    def label(options: str = "limit=4") -> str:
        return plain(f"tasks=piqa,local=true,{options}").source()

    first = label()
    assert first.startswith("lm-eval ") and ": piqa@" in first and first == label()
    assert label("limit=5") != first
    file = data / "lm_eval" / "piqa.jsonl"
    raw = file.read_bytes()
    file.unlink()
    file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(raw))
    assert label() == first, "packed or not"
    file.write_bytes(raw.replace(b"Walk", b"Talk"))
    assert label() != first


def test_the_label_follows_the_users_files(folder):
    def label() -> str:
        return plain(f"tasks=both,include={folder}").source()

    first = label()
    assert first == label()
    quote = folder / "quote.yaml"
    quote.write_text(quote.read_text().replace("max_gen_toks: 3", "max_gen_toks: 4"))
    second = label()
    (folder / "rows.jsonl").write_text('{"text": "Another book."}')
    assert len({first, second, label()}) == 3

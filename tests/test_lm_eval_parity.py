"""Our LM through a full cache says what lm-eval's own `hf` model says of the same checkpoint, offline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lm_eval_help import TASKS, measured, numbers, opened, suite, write_model, write_rows

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
pytest.importorskip("transformers", reason="lm-eval's hf model needs transformers")
pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")

from lm_eval.api.instance import Instance

from harness.lm_eval_entry import KvmarkLM
from suites.lm_eval_bridge import loading

REAL = os.environ.get("KVMARK_DATA")
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=["tight", "roomy"])
def sides(request, tmp_path_factory):
    """(lm-eval's model, ours, ours under tova:budget=16) on one checkpoint; tight: requests get cut."""
    from lm_eval.models.huggingface import HFLM

    folder = write_model(tmp_path_factory.mktemp("llama"), {"tight": 96, "roomy": 1024}[request.param])
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=3, dtype="float32")
    ours = [KvmarkLM(spec, model=str(folder), batch_size=4) for spec in ("transformer", "tova:budget=16")]
    return theirs, *ours


def asked(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, argument, 0, ("made", i, 1)) for i, argument in enumerate(arguments)]


def of_task(name: str, folder: Path, monkeypatch, limit: int, shots: int = 0) -> list[Instance]:
    monkeypatch.setenv("KVMARK_DATA", str(folder))
    task = loading.load([name], None, local=True)[name]
    loading.prepare(task, shots)
    task.build_all_requests(limit=limit)
    return task.instances


def agree(theirs, ours, tova, requests, differ: bool = True) -> None:
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    said, evicting = ours.loglikelihood(requests), tova.loglikelihood(requests)
    assert [a for a, _ in said] == pytest.approx([a for a, _ in expected], abs=TOLERANCE, rel=0)
    assert [b for _, b in said] == [b for _, b in expected]
    if differ:
        assert max(abs(a - b) for (a, _), (b, _) in zip(said, evicting, strict=True)) > 0.05
        assert tova.exercised_share > 0 and ours.exercised_share == 0


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_loglikelihood_of_every_local_task(sides, tmp_path, monkeypatch, task, shots):
    agree(*sides, of_task(task, write_rows(tmp_path / "data"), monkeypatch, 4, shots))


@pytest.mark.full
@pytest.mark.skipif(not REAL, reason="KVMARK_DATA names no folder with lm_eval/*.jsonl")
@pytest.mark.parametrize("task", TASKS)
def test_loglikelihood_of_real_rows(sides, monkeypatch, task):
    requests = of_task(task, Path(REAL), monkeypatch, 20)
    if sides[0].max_length < 1024:  # there lm-eval's own model refuses long endings
        encoded = [sides[0]._encode_pair(*request.args)[1] for request in requests]
        pairs = zip(requests, encoded, strict=True)
        requests = [request for request, ids in pairs if len(ids) <= sides[0].max_length]
    agree(*sides, requests)


def test_odd_contexts_and_continuations(sides):
    """Empty context, spaces at its end, characters of several tokens, a continuation of one."""
    pairs = [("", " alone"), ("gap  ", "end"), ("Sentence 12", "34"), ("é", "—"), ("a", "b")]
    agree(*sides, asked("loglikelihood", *pairs), differ=False)


def test_what_a_text_spells_is_text(sides):
    """The one deviation: `hf` takes `<s>` in a document for the token, we for three characters."""
    theirs, ours, _ = sides
    text = "a <s> b"
    bos = ours.prefix_token_id
    assert theirs.tok_encode(text).count(bos) == 2 and ours.tok_encode(text).count(bos) == 1
    assert ours.tok_encode("a < s> b") == theirs.tok_encode("a < s> b")


def test_the_likeliest_continuation_is_known_as_such(sides):
    """What a model says by itself, scored: of pairs that are encoded as they were said."""
    theirs, ours, tova = sides
    contexts = [f"Sentence {n} of a" for n in range(40)]
    one = {"until": [], "max_gen_toks": 1, "do_sample": False}
    said = ours.generate_until(asked("generate_until", *((text, one) for text in contexts)))
    pairs = [
        (context, text)
        for context, text in zip(contexts, said, strict=True)
        if text.strip() and len(theirs.tok_encode(context + text)) == len(theirs.tok_encode(context)) + 1
    ]
    assert pairs and all(greedy for _, greedy in ours.loglikelihood(asked("loglikelihood", *pairs)))
    agree(theirs, ours, tova, asked("loglikelihood", *pairs), differ=False)


def test_rolling(sides):
    theirs, ours, tova = sides
    texts = ["", "a", "Sentence 7 of a naïve — and long — story.\n" * 9, "漢字" * 40, "x" * 96, "x" * 95]
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    said = ours.loglikelihood_rolling(requests)
    assert said == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert abs(tova.loglikelihood_rolling(requests)[2] - said[2]) > 0.05


def test_generation(sides):
    """Same answers, up to the first of several stop strings; contexts that are too long are cut."""
    theirs, ours, tova = sides
    texts = ["Sentence 3 of", "naïve — and long — " * 8, "long", "story. " * 30, "Sentence 5 of a naïve"]
    free = {"until": [], "max_gen_toks": 30, "do_sample": False}
    requests = asked("generate_until", *((text, free) for text in texts))
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests) == expected
    assert tova.generate_until(requests) != expected
    stop = [text[9:11] for text in expected if len(text) > 12]
    ending = {"until": stop, "max_gen_toks": 30, "temperature": 0.0}
    requests = asked("generate_until", *((text, ending) for text in texts))
    short = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests) == short and short != expected


def test_metrics_of_whole_tasks(tmp_path, monkeypatch):
    """What a run's rows hold is what lm-eval computes with its own model, standard errors included."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path / "data")))
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    folder = write_model(tmp_path / "model")
    of, names = opened(folder), "+".join(TASKS)
    found = measured("transformer", suite(f"tasks={names},local=true,limit=5,bootstrap=100", of), of, folder)
    told = simple_evaluate(
        HFLM(pretrained=str(folder), device="cpu", dtype="float32"), tasks=list(TASKS), limit=5,
        task_manager=TaskManager(include_path=str(loading.LOCAL_FOLDER), include_defaults=False),
        bootstrap_iters=100,
    )  # fmt: skip
    for task, rows in found.items():
        expected = {
            key.replace(",none", ""): value
            for key, value in told["results"][task].items()
            if isinstance(value, int | float)
        }
        mine = numbers(rows)
        assert mine.pop("truncated_requests") == 0
        assert mine == pytest.approx(expected, rel=1e-4), task
        assert {row.requests_with_eviction for row in rows} == {0}

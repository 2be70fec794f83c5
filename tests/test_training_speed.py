"""What a training says of its speed, and that nothing spoiled is ever saved."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import RECIPE, SHAPE, Batch, batch, network, prepared

from models.training import fit, in_parallel
from models.training_log import curve
from models.training_speed import matrix_product_flops, step_flops


def test_a_spoiled_parameter_is_never_saved(tmp_path):
    """A gradient that is not finite spoils the parameters while the loss of its own step still looks well."""
    path = tmp_path / "checkpoint.pt"

    def spoiling(model, drawn, device, recipe):
        sums = in_parallel(model, drawn, device, recipe)
        if step_of(drawn) == 3:
            model.norm.weight.grad.fill_(np.inf)
        return sums

    def step_of(drawn: Batch) -> int:
        return next(n for n in range(8) if np.array_equal(drawn.tokens_BT1, batch(n).tokens_BT1))

    recipe = replace(RECIPE, log_every_s=60)
    with pytest.raises(
        FloatingPointError, match="is not finite after step 4; a lower learning rate may help."
    ):
        fit(prepared(), batch, recipe, checkpoint_path=path, checkpoint_every_s=0, backward=spoiling)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 3 and all(tensor.isfinite().all() for tensor in saved["model"].values())


# --- speed --------------------------------------------------------------------------------------


def test_the_log_tells_speed_and_what_is_left(tmp_path):
    """MFU by hand: FLOPs of the steps since the last entry over their wall time and the ceiling."""
    seen, path = [], tmp_path / "checkpoint.pt"
    log = fit(
        prepared(), batch, RECIPE, step_flops=lambda rows, length: 1e6 * rows * length, ceiling_flops=1e9,
        checkpoint_path=path, on_save=lambda log: seen.append(len(log)),
    )  # fmt: skip
    assert seen == [8]
    for before, entry in zip([None, *log[:-1]], log, strict=True):
        wall_s = entry.wall_s - (before.wall_s if before else 0)
        assert entry.tokens_per_s == pytest.approx(64 / wall_s)
        assert entry.mfu == pytest.approx(64e6 / wall_s / 1e9)
        assert entry.eta_s == pytest.approx((512 - entry.tokens) / entry.tokens_per_s)
    plain = fit(prepared(), batch, RECIPE)
    assert all(entry.mfu is None and entry.tokens_per_s > 0 for entry in plain)

    columns = curve(log)
    assert columns["digits_32"] == [entry.digit_accuracy for entry in log]
    assert {len(column) for column in columns.values()} == {8} and "digit_accuracy_by_length" not in columns


def test_an_older_checkpoint_goes_on(tmp_path):
    """One whose log knows no speed, and one whose log knows more than we do."""
    path = tmp_path / "checkpoint.pt"
    recipe = replace(RECIPE, total_tokens=256)

    def stop(step: int) -> Batch:
        if step == 2:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit(prepared(), stop, recipe, checkpoint_path=path, checkpoint_every_s=0)
    saved = torch.load(path, weights_only=True)
    del saved["flops"]
    for entry in saved["log"]:
        for name in ("tokens_per_s", "eta_s", "mfu"):
            del entry[name]
    torch.save(saved, path)
    costs = {"step_flops": lambda rows, length: 1e6, "ceiling_flops": 1e9}
    log = fit(network(), batch, recipe, checkpoint_path=path, **costs)
    # What was done between the last entry and the checkpoint is not known.
    assert [entry.mfu is None for entry in log] == [True, True, True, False]
    assert log[0].tokens_per_s is None and log[3].tokens_per_s > 0

    saved["log"][0]["newer"] = 1
    torch.save(saved, path)
    with pytest.raises(ValueError, match="not a readable training checkpoint"):
        fit(network(), batch, recipe, checkpoint_path=path)


def test_flops_of_a_step_are_three_forward_passes():
    """The Transformer's by hand: 2 per weight and token, 4 per channel, layer and (query, key) pair."""
    model, rows, length = network(), 3, 40
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    pairs = length * (length + 1) // 2
    by_hand = 3 * rows * (2 * matrices * length + 4 * SHAPE.dim * SHAPE.num_layers * pairs)
    assert step_flops(model, rows, length) == pytest.approx(by_hand)
    # A sequence longer than is asked for token by token: between two samples the cost changes evenly.
    longer = 3 * (2 * matrices * 2000 + 4 * SHAPE.dim * SHAPE.num_layers * 2000 * 2001 // 2)
    assert step_flops(model, 1, 2000) == pytest.approx(longer, rel=0.005)


def test_the_ceiling_is_what_a_product_of_that_dtype_reaches():
    state = torch.get_rng_state()
    flops = matrix_product_flops("cpu", torch.float32)
    a = torch.ones(512, 512)
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    assert flops > 0.3 * 5 * 2 * 512**3 / (time.perf_counter() - start)
    assert 1e8 < flops < 1e14 and torch.equal(state, torch.get_rng_state())

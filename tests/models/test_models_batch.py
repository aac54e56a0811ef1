"""What a batch refuses, and what it knows of its padding."""

import pickle
from dataclasses import replace

import pytest
import torch

from poyo_ssl.errors import BatchError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dff", torch.zeros(7, 5), r"batch\.dff is of shape \(7, 5\)"),
        ("dff", torch.zeros(0, 7, 5), r"batch\.dff is of shape \(0, 7, 5\)"),
        ("dff", torch.zeros(3, 7, 5, dtype=torch.int64), r"batch\.dff is of type torch\.int64"),
        ("unit_index", torch.zeros(5, dtype=torch.int64), r"batch\.unit_index is of shape \(5,\) \(allowed: \(3, 5\)"),
        ("unit_index", torch.zeros(3, 5), r"batch\.unit_index is of type torch\.float32 \(allowed: torch\.int64\)"),
        ("unit_mask", torch.ones(3, 4, dtype=torch.bool), r"batch\.unit_mask is of shape \(3, 4\)"),
        ("unit_mask", torch.ones(3, 5), r"batch\.unit_mask is of type torch\.float32 \(allowed: torch\.bool\)"),
        ("frame_times", torch.zeros(3, 5), r"batch\.frame_times is of shape \(3, 5\) \(allowed: \(3, 7\)"),
        ("session_index", torch.zeros(3, dtype=torch.int32), r"batch\.session_index is of type torch\.int32"),
        ("target_time", torch.zeros(3, 1), r"batch\.target_time is of shape \(3, 1\)"),
        ("window_index", torch.zeros(2, dtype=torch.int64), r"batch\.window_index is of shape \(2,\)"),
        ("target", torch.zeros(2, 4, 4), r"batch\.target is of shape \(2, 4, 4\) \(allowed: 3 windows first\)"),
        ("target", torch.zeros(()), r"batch\.target is of shape \(\)"),
        ("duration_s", 0.0, r"batch\.duration_s is 0\.0 \(allowed: above 0 s\)"),
        ("duration_s", float("nan"), r"batch\.duration_s is nan"),
    ],
)
def test_wrong_shapes_and_types_are_named(make_batch, name, value, message):
    with pytest.raises(BatchError, match=message):
        replace(make_batch(), **{name: value})


def test_padding_is_known_and_survives_copies(make_batch):
    padded, full = make_batch(), make_batch(padded=False)
    assert padded.padded
    assert not full.padded
    assert padded.to("cpu").padded
    assert pickle.loads(pickle.dumps(padded)).padded
    # Hiding a neuron in a full batch is seen, too.
    assert replace(full, unit_mask=padded.unit_mask).padded


def test_a_moved_batch_is_another_one(make_batch):
    batch = make_batch()
    moved = batch.to("meta")
    assert moved.dff.device.type == "meta"
    assert batch.dff.device.type == "cpu"
    assert moved.duration_s == batch.duration_s

"""The online decoder against the offline prediction, and against plain attention over explicit tokens."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from untrained import make_recording, make_run

from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import CheckpointError, ConfigError, RecordingError, StreamError
from poyo_ssl.models.pieces import feed_forward_pieces
from poyo_ssl.models.poyo_ssl import FeedForward, FrameDecoder
from poyo_ssl.online import Decoder
from poyo_ssl.online.network import FoldedFeedForward, FoldedFrameDecoder
from poyo_ssl.training.predict import predict
from poyo_ssl.training.run_folder import TrainedRun


@pytest.fixture
def recording():
    return make_recording()


SWITCHES = [
    {},
    {"value_embedding": "per_unit"},
    {"causal_cross_attention": True},
    {"causal_cross_attention": True, "start_end_tokens": False, "value_embedding": "per_unit"},
    {"start_end_tokens": False},
    {"latent_grid": "unit_second"},
    {"rotary_t_min_s": 1e-4, "latent_step_s": 0.05, "cross_heads": 3},
]


def target_time(run, stamps, rate_hz):
    if run.task == "gratings":
        return stamps[-1] - 0.5 * run.num_frames / rate_hz - stamps[0]
    return stamps[-1] - run.config.window.lag_s - stamps[0]


def normalised(run, dff):
    return run.normalisation["one"].apply(dff, np.arange(dff.shape[1]))


def offline(run, recording, stop):
    """Return the model's plain output for the window before frame `stop`, in the model's own precision."""
    frames, bins = slice(stop - run.num_frames, stop), run.config.window.bin_frames
    stamps, rate = recording.timestamps[frames], recording.rate_hz
    values = normalised(run, recording.dff[frames]).reshape(-1, bins, recording.num_units).mean(axis=1)
    rows = [run.vocabulary.units[f"one/{unit}"] for unit in recording.unit_ids]
    times = stamps.reshape(-1, bins).mean(axis=1) - stamps[0] + 0.5 / rate
    batch = Batch(
        dff=torch.from_numpy(values).to(run.model.latents.dtype)[None],
        unit_index=torch.tensor(rows)[None],
        unit_mask=torch.ones(1, len(rows), dtype=torch.bool),
        frame_times=torch.from_numpy(times)[None],
        session_index=torch.tensor([2]),
        target_time=torch.tensor([target_time(run, stamps, rate)], dtype=torch.float64),
        duration_s=run.num_frames / rate,
    )
    with torch.no_grad():
        latents = run.model.process(run.model.encode(batch, form="plain"))
        output = run.model.readout(
            run.task, latents, session_index=batch.session_index, target_time=batch.target_time, batch=batch
        )
    return output[0].numpy()


def raw_outputs(decoder, monkeypatch):
    """Return a list that fills with the model's outputs before they are rounded or normalised."""
    seen, answer = [], decoder._answer

    def keep(time, coverage, output):
        seen.append(output.clone().numpy())
        return answer(time, coverage, output)

    monkeypatch.setattr(decoder, "_answer", keep)
    return seen


def assert_equals_offline(run, recording, monkeypatch, *, num_frames=20, rtol=1e-9, atol=1e-10):
    """Decode frames online, compare every output with the plain model's, and return the answers."""
    decoder = Decoder(run, recording)
    seen = raw_outputs(decoder, monkeypatch)
    frames = zip(recording.dff[:num_frames], recording.timestamps, strict=False)
    answers = [decoder.step(frame, time) for frame, time in frames]
    for stop, output in zip(range(12, num_frames + 1), seen, strict=True):
        np.testing.assert_allclose(output, offline(run, recording, stop), rtol=rtol, atol=atol)
    return answers


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("bin_frames", [1, 3])
def test_equals_the_plain_model_for_every_switch(recording, monkeypatch, switches, bin_frames):
    run = make_run(window={"bin_frames": bin_frames}, **switches)
    answers = assert_equals_offline(run, recording, monkeypatch)
    assert [answer.status for answer in answers] == ["filling"] * 11 + ["ok"] * 9


@pytest.mark.parametrize("bin_frames", [1, 3])
def test_a_value_skip_reads_the_same_window(recording, monkeypatch, bin_frames):
    assert_equals_offline(make_run("skip", window={"bin_frames": bin_frames}), recording, monkeypatch)


def test_missing_values_add_nothing_to_a_value_skip(recording, monkeypatch):
    run = make_run("skip")
    decoder = Decoder(run, recording)
    frames = recording.dff[:12].copy()
    frames[3, 2] = np.nan
    found = []

    def keep(batch):
        found.append(batch.dff[0])
        return torch.zeros(1, 8, dtype=torch.float64)

    monkeypatch.setattr(decoder.readout.head.skip, "forward", keep)
    for frame in frames:
        decoder.step(frame)
    expected = normalised(run, recording.dff[:12])
    expected[3, 2] = 0
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "normalise", "lag_s"),
    [
        ("gratings", True, 0.2),
        ("gratings", False, 0.0),
        ("skip", True, 0.2),
        ("frame_number", True, 0.2),
        ("position", False, 0.0),
        ("frames", True, 0.2),
    ],
)
def test_equals_predict_for_every_task(recording, output, normalise, lag_s):
    run = make_run(output, normalise=normalise, dtype=torch.float32, window={"lag_s": lag_s})
    decoder = Decoder(run, recording)
    known = predict(run, recording)
    answers = [decoder.step(frame, time) for frame, time in zip(recording.dff, recording.timestamps, strict=True)]
    answers = [answer for answer in answers if answer.status == "ok"]
    np.testing.assert_array_equal([answer.time for answer in answers], known["time"])
    outputs = np.stack([answer.output for answer in answers])
    if output == "frames":
        assert outputs.dtype == known["frames"].dtype == np.uint8
        assert np.abs(outputs.astype(int) - known["frames"]).max() <= 1
        assert (outputs == known["frames"]).mean() > 0.99
        return
    name = "position" if output == "position" else "probabilities"
    np.testing.assert_allclose(outputs, known[name], rtol=1e-4, atol=1e-6)
    if output != "position":
        assert [answer.class_value for answer in answers] == known["class"].tolist()


def test_without_times_the_clock_is_regular(recording, monkeypatch):
    run = make_run()
    regular = replace(recording, timestamps=np.arange(60) / 30.08)
    decoder = Decoder(run, regular)
    seen = raw_outputs(decoder, monkeypatch)
    for frame in recording.dff[:16]:
        last = decoder.step(frame)
    assert last.time == pytest.approx(15 / 30.08)
    for stop, output in zip(range(12, 17), seen, strict=True):
        np.testing.assert_allclose(output, offline(run, regular, stop), rtol=1e-9, atol=1e-10)


def plain_attention(run, values, present, times, duration_s):
    """Attention of the latents to explicit tokens of ``(T, C)`` values, each token present or not."""
    model, config = run.model, run.config.model
    tokens, block = model.tokens, model.encoder.cross_attention
    rows = torch.tensor([run.vocabulary.units[f"one/roi_{i:04d}"] for i in range(values.shape[1])])
    units, w = tokens.units(rows), tokens.value
    if w is None:
        units, w = units.chunk(2, dim=-1)
    kinds, when = [0] * len(times), list(times)
    values, present = torch.from_numpy(np.nan_to_num(values)), torch.from_numpy(present)
    anywhere = present.any(dim=0, keepdim=True)
    if config.start_end_tokens:
        edges = [(1, 0.0)] if config.causal_cross_attention else [(1, 0.0), (2, duration_s)]
        for kind, edge in edges:
            kinds, when = [*kinds, kind], [*when, edge]
            values, present = torch.cat((values, torch.zeros_like(values[:1]))), torch.cat((present, anywhere))
    when = torch.tensor(when, dtype=torch.float64)
    own = units + tokens.types[torch.tensor(kinds)].unsqueeze(1)
    token = torch.cat((own, values.unsqueeze(-1) * w), dim=-1).double()  # (T, C, 2D)
    k, v = block.to_kv(block.norm_context(token)).unflatten(-1, (2, block.heads, -1)).unbind(2)  # (T, C, H, E)
    latent_time = torch.floor(torch.arange(len(model.latents) * 100) / len(model.latents)).double()
    latent_time = (latent_time + 0.5) * config.latent_step_s
    latent_time = latent_time[: len(model.latents) * max(1, int(duration_s / config.latent_step_s + 1e-6))]
    learned = model.latents.repeat(len(latent_time) // len(model.latents), 1)
    q = block.to_q(block.norm(learned)).unflatten(-1, (block.heads, -1))  # (L, H, E)

    def turn(x, time):
        """Rotate pairs of ``(N, ..., E)`` by their times, with sines and cosines written out."""
        pairs = config.dim_head // 4
        period = config.rotary_t_min_s * (config.rotary_t_max_s / config.rotary_t_min_s) ** (
            torch.arange(pairs, dtype=torch.float64) / pairs
        )
        angle = (2 * math.pi * time.unsqueeze(-1) / period.double()).reshape(len(time), *[1] * (x.ndim - 2), pairs)
        out = x.clone()
        a, b = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        out[..., 0 : 2 * pairs : 2] = a * angle.cos() - b * angle.sin()
        out[..., 1 : 2 * pairs : 2] = a * angle.sin() + b * angle.cos()
        return out

    logits = torch.einsum("lhe,tche->lhtc", turn(q, latent_time), turn(k, when)) / math.sqrt(config.dim_head)
    sees = present.expand(len(latent_time), 1, -1, -1)
    if config.causal_cross_attention:
        in_time = (when <= latent_time.unsqueeze(-1)) | (torch.tensor(kinds) == 1)
        sees = sees & in_time[:, None, :, None]
    weights = torch.where(sees, logits, -math.inf).flatten(2).softmax(-1).nan_to_num(0.0)
    out = torch.einsum("lhn,nhe->lhe", weights, turn(v, when).flatten(0, 1))
    return block.to_out(turn(out, -latent_time).flatten(1))


@pytest.mark.parametrize("switches", SWITCHES[:5])
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.5, 0.9]))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_missing_takes_no_part(recording, switches, seed, share):
    run, rng = make_run(**switches), np.random.default_rng(seed)
    decoder = Decoder(run, recording, min_coverage=0.0)
    dff = recording.dff[:18].copy()
    dff[rng.random(dff.shape) < share] = np.nan
    dff[:, 3] = np.nan  # a neuron that is never there
    dff[:9, 4] = np.inf  # one that joins late
    dff[7] = np.nan
    branches, attend = [], decoder.attention.attend
    decoder.attention.attend = lambda *window: branches.append(attend(*window)) or branches[-1]
    answers = []
    for i, (frame, time) in enumerate(zip(dff, recording.timestamps, strict=False)):
        if i == 7:
            decoder.skip()
        else:
            answers.append(decoder.step(frame, time))
    # The dropped frame lies where the clock expects it.
    stamps = recording.timestamps[:18].copy()
    stamps[7] = stamps[6] + 1 / recording.rate_hz
    x, finite = normalised(run, dff), np.isfinite(dff)
    usable = [stop for stop in range(12, 19) if finite[stop - 12 : stop].any()]
    assert [answer.status for answer in answers[10:]].count("ok") == len(usable) == len(branches)
    for stop, branch in zip(usable, branches, strict=True):
        window, times = slice(stop - 12, stop), stamps[stop - 12 : stop] - stamps[stop - 12] + 0.5 / recording.rate_hz
        with torch.no_grad():
            plain = plain_attention(run, x[window], finite[window], times, 12 / recording.rate_hz)
        np.testing.assert_allclose(branch, plain, rtol=1e-9, atol=1e-10)
        coverage = finite[window].mean()
        assert answers[stop - 2].coverage == pytest.approx(coverage)
    assert decoder.counts.frames == 17
    assert decoder.counts.dropped == 1
    assert decoder.counts.missing == (~finite[np.arange(18) != 7]).sum()


def test_a_neuron_that_is_never_there_is_one_the_model_does_not_see(recording):
    run = make_run()
    decoder = Decoder(run, recording)
    dff = recording.dff[:12].copy()
    dff[:, 2] = np.nan
    for frame, time in zip(dff, recording.timestamps, strict=False):
        answer = decoder.step(frame, time)
    keep = np.arange(7) != 2
    fewer = replace(recording, dff=recording.dff[:, keep], unit_ids=recording.unit_ids[keep], cell_specimen_ids=None)
    smaller = replace(
        run,
        columns={"one": np.arange(6)},
        normalisation={
            "one": replace(
                run.normalisation["one"],
                **{
                    name: getattr(run.normalisation["one"], name)[keep]
                    for name in ("centre", "scale", "mean", "spread")
                },
            )
        },
    )
    expected = torch.from_numpy(offline(smaller, fewer, 12)).softmax(-1)
    np.testing.assert_allclose(answer.output, expected, rtol=1e-9)


def test_a_gap_in_time_is_dropped_frames(recording):
    run, period = make_run(), 1 / recording.rate_hz
    by_time, by_hand = Decoder(run, recording), Decoder(run, recording)
    for i in range(30):
        if i in (14, 15, 22):
            by_hand.skip()
            continue
        answers = [by_time.step(recording.dff[i], i * period), by_hand.step(recording.dff[i])]
        if answers[0].status == "ok":
            np.testing.assert_allclose(answers[0].output, answers[1].output, rtol=1e-9)
    assert by_time.counts == by_hand.counts
    assert by_time.counts.dropped == 3
    # One and a half frames are not yet a gap.
    assert by_time.step(recording.dff[0], 29 * period + 1.49 * period).status == "ok"
    assert by_time.counts.dropped == 3


def test_after_a_long_gap_the_window_fills_again(recording):
    decoder = Decoder(make_run(), recording, min_coverage=0.5)
    for frame in recording.dff[:15]:
        decoder.step(frame)
    statuses = [decoder.step(frame, 1e6 + i / 30.08).status for i, frame in enumerate(recording.dff[:8])]
    # Six of twelve frames are half of the window.
    assert statuses == ["sparse"] * 5 + ["ok"] * 3
    assert decoder.counts.dropped > 10**6
    decoder.reset()
    assert decoder.step(recording.dff[0], 0.0).status == "filling"
    assert decoder.counts.frames == 1


def test_nothing_there_is_sparse_whatever_the_limit(recording):
    decoder = Decoder(make_run(), recording, min_coverage=0.0)
    answers = [decoder.step(np.full(7, np.nan)) for _ in range(14)]
    assert answers[-1].status == "sparse"
    assert answers[-1].output is None
    assert answers[-1].coverage == 0


@pytest.mark.parametrize("factor", [40.0, 2000.0])
def test_sharp_attention_stays_exact(recording, monkeypatch, factor):
    """Logits far beyond the range of float64's exponent: the softmax moves its origin."""
    run = make_run()
    with torch.no_grad():
        run.model.encoder.cross_attention.to_q.weight *= factor
    assert_equals_offline(run, recording, monkeypatch, num_frames=40, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("factor", "sharp"), [(1.0, False), (40.0, True), (2000.0, True)])
def test_self_attention_without_its_maximum_knows_when_it_cannot(recording, monkeypatch, factor, sharp):
    run = make_run()
    with torch.no_grad():
        for block in run.model.processor:
            block.self_attention.to_qkv.weight[:64] *= factor
    decoder, frames = Decoder(run, recording), zip(recording.dff[:16], recording.timestamps, strict=False)
    assert not decoder.processor.needs_maximum
    seen = raw_outputs(decoder, monkeypatch)
    for frame, time in frames:
        decoder.step(frame, time)
    assert decoder.processor.needs_maximum == sharp
    for stop, output in zip(range(12, 17), seen, strict=True):
        np.testing.assert_allclose(output, offline(run, recording, stop), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_folded_feed_forward_adds_the_branch(offset):
    torch.manual_seed(0)
    module, z = FeedForward(16, dropout=0.2).double().eval(), torch.randn(5, 16, dtype=torch.float64) + offset
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter)
        expected = z + module(z)
        before = z.clone()
        added = FoldedFeedForward(feed_forward_pieces(module), num_rows=5)(z)
    np.testing.assert_allclose(added, expected, rtol=1e-10, atol=1e-10)
    assert added is z
    assert not torch.equal(z, before)


def test_an_output_is_not_changed_by_the_next_frame(recording):
    decoder = Decoder(make_run("frames", dtype=torch.float32), recording)
    answers, copies = [], []
    for frame in recording.dff[:20]:
        answers.append(decoder.step(frame))
        copies.append(None if answers[-1].output is None else answers[-1].output.copy())
    for answer, copy in zip(answers[11:], copies[11:], strict=True):
        np.testing.assert_array_equal(answer.output, copy)
    assert not np.array_equal(copies[11], copies[-1])


def test_memory_is_constant(recording):
    decoder = Decoder(make_run(dtype=torch.float32, depth=1, num_latents_per_step=1), recording)
    tracemalloc.start()
    try:
        for i in range(360):
            if i == 120:  # what Python keeps for reuse is there
                before = tracemalloc.get_traced_memory()[0]
            decoder.step(recording.dff[i % 60])
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 4_800  # less than the smallest object per frame


@pytest.mark.parametrize(
    ("frame", "time", "message"),
    [
        (np.zeros(6), None, r"shape \(6,\) for 7 neurons"),
        (np.zeros((1, 7)), None, r"shape \(1, 7\)"),
        (["a"] * 7, None, "not numeric"),
        (np.zeros(7), 1.0, "a later time"),
        (np.zeros(7), math.nan, "a finite time"),
    ],
)
def test_bad_frames_are_named_and_leave_the_decoder_as_it_was(recording, frame, time, message):
    decoder = Decoder(make_run(), recording)
    decoder.step(recording.dff[0], 1.0)
    with pytest.raises(StreamError, match=message):
        decoder.step(frame, time)
    assert decoder.counts.frames == 1
    assert decoder.window.num_seen == 1
    with pytest.raises(StreamError, match="0 dropped frames"):
        decoder.skip(0)


def test_bad_settings_are_named(recording, tmp_path):
    run = make_run()
    with pytest.raises(CheckpointError, match=r"no recordings\.json.*give the Recording itself"):
        Decoder(replace(run, folder=tmp_path), "one")
    with pytest.raises(RecordingError, match="'one'"):
        Decoder(run, "onee")
    with pytest.raises(RecordingError, match="2 recordings"):
        Decoder(replace(run, columns={"one": np.arange(7), "two": np.arange(7)}))
    with pytest.raises(ConfigError, match="rate_hz of 0"):
        Decoder(run, recording, rate_hz=0.0)
    with pytest.raises(ConfigError, match="min_coverage of 2"):
        Decoder(run, recording, min_coverage=2.0)


def test_the_users_model_is_left_alone(recording):
    run = make_run("frames")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    decoder = Decoder(run, recording)
    decoder.step(recording.dff[0])
    assert isinstance(run, TrainedRun)
    assert isinstance(run.model.readouts["frames"].head, FrameDecoder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 32), (64, 128), (30, 52)])
def test_the_folded_frame_decoder_equals_the_frame_decoder(height, width, skips):
    torch.manual_seed(0)
    decoder = FrameDecoder(6, height=height, width=width, skips=skips).double().eval()
    for name, tensor in decoder.state_dict().items():
        if "running" in name:
            tensor += torch.rand_like(tensor)
    latent = torch.randn(1, 6, dtype=torch.float64)
    with torch.no_grad():
        np.testing.assert_allclose(FoldedFrameDecoder(decoder)(latent), decoder(latent), rtol=1e-10, atol=1e-12)

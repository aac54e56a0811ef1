"""The online decoder against the offline prediction, and against plain attention over explicit tokens."""

import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from untrained import NUM_UNITS, RATE_HZ, make_recording, make_run

from poyo_ssl.data.windows import Batch
from poyo_ssl.errors import CheckpointError, ConfigError, RecordingError, StreamError
from poyo_ssl.models.poyo_ssl import FrameDecoder
from poyo_ssl.online import Decoder
from poyo_ssl.online.network import FoldedFrameDecoder
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

    monkeypatch.setattr(decoder.model.readouts["gratings"].skip, "forward", keep)
    for frame in frames:
        decoder.step(frame)
    expected = normalised(run, recording.dff[:12])
    expected[3, 2] = 0
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize("bin_frames", [1, 2, 3])
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
def test_equals_predict_for_every_task(recording, output, normalise, lag_s, bin_frames):
    window = {"lag_s": lag_s, "bin_frames": bin_frames}
    run = make_run(output, normalise=normalise, dtype=torch.float32, window=window)
    decoder = Decoder(run, recording)
    known = predict(run, recording)
    answers = [decoder.step(frame, time) for frame, time in zip(recording.dff, recording.timestamps, strict=True)]
    answers = [answer for answer in answers if answer.status == "ok"]
    np.testing.assert_array_equal([answer.time for answer in answers], known.time)
    outputs = np.stack([answer.output for answer in answers])
    if output == "frames":
        assert outputs.dtype == known.frames.dtype == np.uint8
        assert np.abs(outputs.astype(int) - known.frames).max() <= 1
        assert (outputs == known.frames).mean() > 0.99
        return
    name = "position" if output == "position" else "probabilities"
    np.testing.assert_allclose(outputs, getattr(known, name), rtol=1e-4, atol=1e-6)
    if output != "position":
        assert [answer.class_value for answer in answers] == known.classes.tolist()


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


def turn(x, time, config):
    """Rotate the pairs of ``(..., E)`` by times that broadcast to ``(...)``, with sines and cosines written out."""
    pairs = config.dim_head // 4
    shares = torch.arange(pairs, dtype=torch.float64) / pairs
    period = config.rotary_t_min_s * (config.rotary_t_max_s / config.rotary_t_min_s) ** shares
    angle = 2 * math.pi * time.unsqueeze(-1) / period
    out = x.clone()
    a, b = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
    out[..., 0 : 2 * pairs : 2] = a * angle.cos() - b * angle.sin()
    out[..., 1 : 2 * pairs : 2] = a * angle.sin() + b * angle.cos()
    return out


def plain_attention(run, values, times, duration_s):
    """Attend to explicit tokens of W windows, values ``(W, T, C)`` (NaN has no token) at times ``(W, T)``."""
    model, config = run.model, run.config.model
    tokens, block, num_windows = model.tokens, model.encoder.cross_attention, len(values)
    rows = torch.tensor([run.vocabulary.units[f"one/roi_{i:04d}"] for i in range(values.shape[2])])
    units, w = tokens.units(rows), tokens.value
    if w is None:
        units, w = units.chunk(2, dim=-1)
    kinds = [0] * values.shape[1]
    present = ~values.isnan()  # (W, T, C)
    values, anywhere = values.nan_to_num(), present.any(dim=1, keepdim=True)
    if config.start_end_tokens:
        for kind, edge in [(1, 0.0)] if config.causal_cross_attention else [(1, 0.0), (2, duration_s)]:
            kinds, times = [*kinds, kind], torch.cat((times, times.new_full((num_windows, 1), edge)), dim=1)
            values, present = F.pad(values, (0, 0, 0, 1)), torch.cat((present, anywhere), dim=1)
    kinds = torch.tensor(kinds)
    own = (units + tokens.types[kinds].unsqueeze(1)).expand(num_windows, -1, -1, -1)
    token = torch.cat((own, values.unsqueeze(-1) * w), dim=-1)  # (W, T, C, 2D)
    k, v = block.to_kv(block.norm_context(token)).unflatten(-1, (2, block.heads, -1)).unbind(3)  # (W, T, C, H, E)
    num_steps = max(1, int((1.0 if config.latent_grid == "unit_second" else duration_s) / config.latent_step_s + 1e-6))
    steps = (torch.arange(num_steps).double() + 0.5) * config.latent_step_s
    latent_time = steps.repeat_interleave(len(model.latents))
    q = block.to_q(block.norm(model.latents.repeat(num_steps, 1))).unflatten(-1, (block.heads, -1))  # (L, H, E)
    q, at_tokens = turn(q, latent_time.unsqueeze(-1), config), times[:, :, None, None]
    k, v = turn(k, at_tokens, config), turn(v, at_tokens, config)
    logits = torch.einsum("lhe,wtche->wlhtc", q, k) / math.sqrt(config.dim_head)
    sees = present[:, None, None]
    if config.causal_cross_attention:
        in_time = (times.unsqueeze(1) <= latent_time.unsqueeze(-1)) | (kinds == 1)  # (W, L, T)
        sees = sees & in_time[:, :, None, :, None]
    weights = torch.where(sees, logits, -math.inf).flatten(3).softmax(-1).nan_to_num(0.0)
    out = torch.einsum("wlhn,wnhe->wlhe", weights, v.flatten(1, 2))
    return block.to_out(turn(out, -latent_time.unsqueeze(-1), config).flatten(2))  # (W, L, D)


def offline_with_holes(run, dff, stamps):
    """Return the outputs of every window of a recording ``(F, C)`` in which NaN says that a value is not there."""
    model, bins, num_frames = run.model, run.config.window.bin_frames, run.num_frames
    windows = np.arange(len(dff) - num_frames + 1)[:, None] + np.arange(num_frames)  # (W, N)
    duration_s, start = num_frames / RATE_HZ, stamps[windows[:, :1]]
    values = torch.from_numpy(normalised(run, dff))[windows].unflatten(1, (-1, bins)).nanmean(dim=2).double()
    times = stamps[windows].reshape(len(windows), -1, bins).mean(axis=2) - start + 0.5 / RATE_HZ
    before = 0.5 * duration_s if run.task == "gratings" else run.config.window.lag_s
    rows = torch.tensor([run.vocabulary.units[f"one/roi_{i:04d}"] for i in range(NUM_UNITS)])
    batch = Batch(
        dff=values.nan_to_num(),
        unit_index=rows.expand(len(windows), -1),
        unit_mask=torch.ones(len(windows), NUM_UNITS, dtype=torch.bool),
        frame_times=torch.from_numpy(times),
        session_index=torch.full((len(windows),), 2),
        target_time=torch.from_numpy(stamps[windows[:, -1]] - before - start[:, 0]),
        duration_s=duration_s,
    )
    with torch.no_grad():
        latents = model.encode(batch)  # for their times
        attended = plain_attention(run, values, batch.frame_times, duration_s)
        learned = model.latents.repeat(attended.shape[1] // len(model.latents), 1)
        latents = model.process(latents.with_values(model.encoder.with_residuals(learned, attended)))
        places = {"session_index": batch.session_index, "target_time": batch.target_time}
        return model.readout(run.task, latents, **places, batch=batch).numpy()


def assert_stream_equals_offline(run, dff, stamps, dropped, monkeypatch):
    """Decode a stream in which every other run of dropped frames is told by `skip`, the others by their times.

    Frames are dropped where `dropped`; `dff` is NaN and `stamps` regular there.
    """
    decoder = Decoder(run, make_recording(), rate_hz=RATE_HZ, min_coverage=0.0)
    seen, outputs = raw_outputs(decoder, monkeypatch), {}
    for i, (frame, time) in enumerate(zip(dff, stamps, strict=True)):
        if dropped[i]:
            if dropped[:i].sum() % 2:
                decoder.skip()
            continue
        answer = decoder.step(frame, time)
        window = np.isfinite(dff[max(0, i + 1 - run.num_frames) : i + 1])
        assert answer.coverage == pytest.approx(window.sum() / (run.num_frames * NUM_UNITS))
        full = i + 1 >= run.num_frames
        assert answer.status == ("filling" if not full else "ok" if window.any() else "sparse")
        if answer.status == "ok":
            outputs[i + 1 - run.num_frames] = seen[-1]
    expected = offline_with_holes(run, dff, stamps)[list(outputs)]
    np.testing.assert_allclose(np.stack(list(outputs.values())), expected, rtol=1e-6, atol=1e-7)
    assert decoder.counts.frames == (~dropped).sum()
    assert decoder.counts.missing == np.isnan(dff[~dropped]).sum()
    return decoder


def make_stream(rng, num_frames, *, num_complete, share, jitter_s):
    """Return dF/F, times and dropped frames: complete at first, then with values missing, a late neuron and gaps."""
    dff = rng.gamma(1.0, size=(num_frames, NUM_UNITS)).astype(np.float32)
    stamps = 3.0 + np.arange(num_frames) / RATE_HZ + rng.uniform(-jitter_s, jitter_s, num_frames)
    dropped = np.zeros(num_frames, bool)
    dropped[num_complete:-1] = rng.random(num_frames - 1 - num_complete) < 0.1 * share
    dropped[0] = False  # the clock starts with a frame
    if num_frames - num_complete > 100:
        dropped[num_complete + 60 : num_complete + 80] = True  # longer than a window
    dff[num_complete:][rng.random((num_frames - num_complete, NUM_UNITS)) < share] = np.nan
    dff[num_complete : (num_complete + num_frames) // 2, 4] = np.nan  # is lost, and joins again
    dff[dropped] = np.nan
    for i in np.flatnonzero(dropped):
        stamps[i] = stamps[i - 1] + 1 / RATE_HZ
    return dff, stamps, dropped


OUTPUTS = ["gratings", "skip", "frame_number", "frames", "position"]
COMBINATIONS = list(itertools.product([1, 2, 3], ["shared", "per_unit"], [False, True], [True, False]))


@pytest.mark.parametrize(
    ("bin_frames", "value_embedding", "causal", "edges", "output"),
    [(*combination, OUTPUTS[i % len(OUTPUTS)]) for i, combination in enumerate(COMBINATIONS)],
)
def test_a_long_stream_equals_offline(monkeypatch, bin_frames, value_embedding, causal, edges, output):
    """Forty windows, the first fifteen complete: what is kept from one turn of the ring to the next is right."""
    window = {"bin_frames": bin_frames, "lag_s": 0.1}
    model = {"value_embedding": value_embedding, "causal_cross_attention": causal, "start_end_tokens": edges}
    run = make_run(output, window=window, depth=1, latent_step_s=0.1, num_latents_per_step=1, **model)
    rng = np.random.default_rng(bin_frames)
    stream = make_stream(rng, 500, num_complete=180, share=0.4, jitter_s=0.0 if edges else 2e-3)
    assert_stream_equals_offline(run, *stream, monkeypatch)


@given(
    seed=st.integers(0, 10**6),
    output=st.sampled_from(OUTPUTS),
    bin_frames=st.sampled_from([1, 2, 3, 4]),
    num_windows=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    jitter_s=st.sampled_from([0.0, 2e-3]),
    normalise=st.booleans(),
    model=st.fixed_dictionaries(
        {
            "value_embedding": st.sampled_from(["shared", "per_unit"]),
            "causal_cross_attention": st.booleans(),
            "start_end_tokens": st.booleans(),
            "latent_grid": st.sampled_from(["window", "unit_second"]),
            "latent_step_s": st.sampled_from([0.05, 0.125]),
            "rotary_t_min_s": st.sampled_from([1e-4, 0.07]),
            "cross_heads": st.sampled_from([1, 2, 3]),
        }
    ),
)
@settings(max_examples=15, deadline=None)
def test_streams_equal_offline(seed, output, bin_frames, num_windows, share, jitter_s, normalise, model):
    window = {"bin_frames": bin_frames, "lag_s": 0.1}
    run = make_run(output, window=window, normalise=normalise, depth=1, num_latents_per_step=1, **model)
    rng, num_complete = np.random.default_rng(seed), 12 * (seed % 3)
    stream = make_stream(rng, 12 * num_windows + 25, num_complete=num_complete, share=share, jitter_s=jitter_s)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert_stream_equals_offline(run, *stream, monkeypatch)


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

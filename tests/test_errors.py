"""Errors: one line that names what was given, what is allowed and the fix."""

import pickle

import pytest

from poyo_ssl.errors import ConfigError, PoyoError, RecordingError, check, choose, suggest


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "a b"),
        ({"allowed": "1 or more"}, "a b (allowed: 1 or more)"),
        ({"fix": "raise it"}, "a b; raise it"),
        ({"allowed": "1", "fix": "raise it"}, "a b (allowed: 1); raise it"),
    ],
)
def test_the_line_survives_pickling(given, line):
    error = pickle.loads(pickle.dumps(RecordingError("a\n  b", **given)))
    assert (type(error), str(error), error.problem) == (RecordingError, line, "a\n  b")
    assert (error.allowed, error.fix) == (given.get("allowed"), given.get("fix", ""))


def test_suggest_names_the_nearest_word_or_none():
    assert suggest("pretrian", ["pretrain", "finetune"]) == ", did you mean 'pretrain'?"
    assert suggest("zzz", ["pretrain"]) == ""


def test_checks():
    check(True, "fine")
    choose("level", "line", ("line", "neuron"))
    with pytest.raises(ConfigError, match=r"^level 'lin', did you mean 'line'\? \(allowed: line, neuron\)$"):
        choose("level", "lin", ("line", "neuron"))
    assert issubclass(ConfigError, PoyoError)

"""Data that a backbone cannot hear whole, or in a language that it does not have, are refused before training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets import Dataset

from localgp.corpora.fits import check_fits, split_of
from localgp.errors import ConfigError


class German:
    languages = ("deu",)

    def prompt(self, language, target):
        if {language, target} != {"de"}:
            raise ConfigError("unknown")
        return []


BACKBONE = SimpleNamespace(name="tiny", padded_seconds=8.0, tokenizer=German())


def rows(*segments):
    return Dataset.from_list(
        [dict(zip(("seconds", "language", "targets"), s, strict=True)) for s in segments]
    )


def test_what_fits_passes():
    check_fits(rows((8.0, "de", []), (0.3, "de", [])), BACKBONE, 8.0)


def test_a_segment_longer_than_the_window_is_not_cut_in_silence():
    with pytest.raises(ConfigError, match=r"1 of 2 segments .* 8 s .*longest 20\.0 s.*corpus\.max_seconds=8"):
        check_fits(rows((20.0, "de", []), (1.0, "de", [])), BACKBONE, 8.0)


def test_languages_that_the_backbone_lacks_are_named_with_those_to_keep():
    with pytest.raises(
        ConfigError, match=r"the corpus has en, fr, .*has deu; corpus\.languages=\[de\] keeps"
    ):
        check_fits(rows((1.0, "de", ["en"]), (1.0, "fr", [])), BACKBONE, 8.0)


def test_all_problems_at_once():
    with pytest.raises(ConfigError, match=r"(?s)corpus\.max_seconds.*the corpus has it"):
        check_fits(rows((9.0, "it", [])), BACKBONE, 8.0)


def test_a_split_that_is_not_there():
    with pytest.raises(ConfigError, match=r'no dev split, only train\. In a manifest.*"split": "dev"'):
        split_of({"train": rows((1.0, "de", []))}, "dev")

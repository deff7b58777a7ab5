"""Cached contexts are the extracted ones, and never another extractor's."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from localgp.contexts.event import EventExtractor
from localgp.contexts.extract import row_contexts, wrong_speakers
from localgp.contexts.on_disk import open_store
from localgp.contexts.speaker import SpeakerExtractor
from localgp.errors import ConfigError
from localgp.training.data import Collate, TrainingExamples
from tests.context_helpers import make_rows, write_event, write_speaker
from tests.test_data import TIMELINE, Letters


class Counting:
    """Says what it was asked for."""

    name = "spk"

    def __init__(self, digest="first", value=1.0):
        self.digest, self.value = digest, value
        self.asked = Counter()

    def extract(self, samples):
        self.asked[float(samples[0])] += 1
        return np.full((1, 3), self.value * samples[0], dtype=np.float16)


def keys_of(rows):
    return set(rows["audio_sha1"])


@pytest.fixture
def cfg(tmp_path):
    return OmegaConf.create(
        {
            "data_dir": str(tmp_path / "data"),
            "device": "cpu",
            "pruning": {"encoder": "local", "context": ["front", "event", "spk"]},
            "contexts": {
                "spk": {"source": str(write_speaker(tmp_path / "speaker")), "shuffle": False},
                "event": {"source": str(write_event(tmp_path / "beats.pt"))},
            },
        }
    )


def test_cache_hit_equals_fresh_extraction_bit_by_bit(cfg):
    rows = make_rows(3)
    row_contexts(cfg, (rows, rows))  # fills the cache
    contexts = row_contexts(cfg, (rows, rows))
    for name, extractor in {
        "spk": SpeakerExtractor(cfg.contexts.spk.source),
        "event": EventExtractor(cfg.contexts.event.source),
    }.items():
        for row in rows:
            fresh = extractor.extract(row["samples"].astype(np.float32) / 32768)
            stored = contexts.stores[name][row["audio_sha1"]]
            assert fresh.tobytes() == stored.tobytes()
            assert fresh.shape == stored.shape


def test_only_what_is_missing_is_extracted(tmp_path):
    rows = make_rows(5)
    first, second, third = Counting(), Counting(), Counting()
    open_store(tmp_path, first, rows, keys_of(rows.select(range(2))))
    store = open_store(tmp_path, second, rows, keys_of(rows))
    open_store(tmp_path, third, rows, keys_of(rows))
    assert (first.asked.total(), second.asked.total(), third.asked.total()) == (2, 3, 0)
    assert all(key in store for key in keys_of(rows))


def test_changed_extractor_reads_nothing_of_the_old_one(cfg, tmp_path):
    rows = make_rows(2)
    old = row_contexts(cfg, (rows, rows)).stores
    write_speaker(tmp_path / "speaker", seed=1)  # other weights in the same place
    write_event(tmp_path / "beats.pt", seed=1)
    new = row_contexts(cfg, (rows, rows)).stores
    for name in ("spk", "event"):
        assert old[name].folder != new[name].folder
        assert not np.array_equal(old[name][f"{0:016x}"], new[name][f"{0:016x}"])


def test_stopped_extraction_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("localgp.contexts.on_disk._SHARD_ENTRIES", 2)
    rows = make_rows(5)

    class Stopping(Counting):
        def extract(self, samples):
            if self.asked.total() == 3:
                raise KeyboardInterrupt
            return super().extract(samples)

    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path, Stopping(), rows, keys_of(rows))
    assert not list(tmp_path.glob("*/.*.tmp"))
    rest = Counting()
    open_store(tmp_path, rest, rows, keys_of(rows))
    assert rest.asked.total() == 3


def test_damaged_shard_is_kept_aside_and_made_again(tmp_path):
    rows = make_rows(2)
    folder = open_store(tmp_path, Counting(), rows, keys_of(rows)).folder
    shard = next(folder.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:20])
    again = Counting()
    open_store(tmp_path, again, rows, keys_of(rows))
    assert again.asked.total() == 2
    assert shard.read_bytes() == whole
    assert shard.with_suffix(".damaged").exists()


def test_two_at_once_extract_everything_once(tmp_path):
    rows = make_rows(5)
    extractors = [Counting(), Counting()]
    stores = {}

    def work(index):
        stores[index] = open_store(tmp_path, extractors[index], rows, keys_of(rows))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum((e.asked for e in extractors), Counter()).total() == 5
    assert all(key in stores[i] for i in range(2) for key in keys_of(rows))


def test_loader_processes_get_a_store_that_opens_its_own_files(tmp_path):
    rows = make_rows(2)
    store = open_store(tmp_path, Counting(), rows, keys_of(rows))
    expected = store[f"{1:016x}"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store))[f"{1:016x}"], expected)


def test_batches_carry_contexts_moved_with_the_speech(cfg):
    rows = make_rows(3)
    contexts = row_contexts(cfg, (rows, rows))
    samples = 32000
    backbone = SimpleNamespace(tokenizer=Letters(), samples=samples, timeline=TIMELINE)
    moved = TrainingExamples(rows, backbone, group_tasks=True, init_silence=16000, seed=1, contexts=contexts)
    examples = [moved[0, i] for i in range(3)]
    batch = Collate(na=9)(examples)
    assert batch["contexts"]["spk"].shape == (3, 1, 12)
    assert batch["contexts"]["event"].shape == (3, 49, 24)  # 201 feature frames
    for i, example in enumerate(examples):
        offset = example["signal"][0]
        assert offset > 0
        expected = contexts.of(rows[i], offset, samples, TIMELINE)["event"]
        np.testing.assert_array_equal(batch["contexts"]["event"][i], expected)
        assert not np.array_equal(expected, contexts.of(rows[i], 0, samples, TIMELINE)["event"])


def test_gates_without_contexts_load_no_extractor(cfg):
    rows = make_rows(2)
    cfg.contexts.spk.source = "nowhere/at/all"
    cfg.pruning.context = ["front"]
    assert row_contexts(cfg, (rows, rows)) is None


# The control


def test_wrong_speakers_are_wrong_and_of_the_same_language():
    rows = make_rows(30, ("de-a", "de-b", "de-c", "fr-d", "fr-e"))
    donors = wrong_speakers(rows)
    speaker = dict(zip(rows["audio_sha1"], rows["speaker"], strict=True))
    assert len(donors) == 30
    for key, donor in donors.items():
        assert speaker[donor] != speaker[key]
        assert speaker[donor][:2] == speaker[key][:2]
    assert donors == wrong_speakers(rows)
    # Not an exchange of speakers, which would identify them as well as their own embeddings do.
    assert len({(speaker[k], speaker[d]) for k, d in donors.items() if speaker[k] == "de-a"}) == 2


def test_a_language_with_one_speaker_borrows_from_another():
    rows = make_rows(4, ("de-a", "fr-b"))
    donors = wrong_speakers(rows)
    assert donors[f"{0:016x}"] in (f"{1:016x}", f"{3:016x}")


def test_wrong_speakers_need_speakers():
    with pytest.raises(ConfigError, match="names 1 speakers and leaves 0 of 3"):
        wrong_speakers(make_rows(3, ("de-a",)))
    with pytest.raises(ConfigError, match="names 1 speakers and leaves 2 of 4"):
        wrong_speakers(make_rows(4, ("de-a", None)))


def test_a_part_gets_the_same_wrong_speakers_as_the_whole(cfg):
    cfg.contexts.spk.shuffle = True
    cfg.pruning.context = ["spk"]
    rows = make_rows(6)
    part = row_contexts(cfg, (rows.select([2]), rows))
    whole = row_contexts(cfg, (rows, rows))
    own = SpeakerExtractor(cfg.contexts.spk.source).extract(rows[2]["samples"].astype(np.float32) / 32768)
    given = part.of(rows[2], 0, 32000, TIMELINE)["spk"]
    np.testing.assert_array_equal(given, whole.of(rows[2], 0, 32000, TIMELINE)["spk"])
    assert not np.array_equal(given, own.astype(np.float32))
